# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.api`, started by the supervisor: the wiring of everything but the tunnel."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server

from sendense.hub.v1 import (
    authorization_service_pb2_grpc,
    backup_service_pb2_grpc,
    job_service_pb2_grpc,
    point_service_pb2_grpc,
    site_service_pb2_grpc,
    system_service_pb2_grpc,
    vcenter_service_pb2_grpc,
)
from sendense_common import rpc, telemetry
from sendense_common.paths import CredentialsPaths, HubPaths, private_dir
from sendense_common.service import only_one, run_service
from sendense_hub.catalog import Catalog, open_catalog, repositories
from sendense_hub.clients.leases import Leases
from sendense_hub.domain.point_locks import PointLocks
from sendense_hub.jobs import engine
from sendense_hub.jobs.board import Board
from sendense_hub.jobs.exports import ExportTable
from sendense_hub.jobs.guarded_sites import GuardedSites
from sendense_hub.jobs.intake import DEFAULT_REPOSITORY, Intake
from sendense_hub.jobs.recovery import recover
from sendense_hub.jobs.runner import Runner
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import Repository, open_repository
from sendense_hub.rpc.authorization_service import AuthorizationService
from sendense_hub.rpc.backup_service import BackupService
from sendense_hub.rpc.job_service import JobService
from sendense_hub.rpc.point_service import PointService
from sendense_hub.rpc.site_service import SiteService
from sendense_hub.rpc.span_intake import SpanIntake
from sendense_hub.rpc.system_service import SystemService
from sendense_hub.rpc.vcenter_service import VcenterService

log = logging.getLogger(__name__)

_DEFAULT_CONCURRENCY = 4


async def serve(
    paths: HubPaths,
    credentials: CredentialsPaths,
    directories: Mapping[str, Path],
    concurrency: int,
    stopping: asyncio.Event,
) -> None:
    """Runs the API until `stopping` is set.

    Args:
        paths: of this hub.
        credentials: of the credentials service; only its sockets are used.
        directories: of the repositories, by name.
        concurrency: jobs that run at once.
        stopping: ends it.
    """
    for directory in (paths.state, paths.run, paths.exports_dir, paths.agents_dir):
        private_dir(directory)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(only_one(paths.state / "api.lock", "hub"))
        _remove_stale_sockets(paths.exports_dir)
        catalog = await stack.enter_async_context(open_catalog(f"sqlite:///{paths.state / 'catalog.sqlite'}"))
        sites = GuardedSites(paths.agents_dir, Leases(credentials.hub_socket), catalog)
        workshop = Workshop(
            catalog=catalog,
            board=Board(catalog),
            sites=sites,
            exports=ExportTable(),
            locks=PointLocks(),
            repositories=await _open_repositories(catalog, directories),
            exports_dir=paths.exports_dir,
        )
        await recover(workshop)
        sweeper = SnapshotSweeper(catalog, sites)
        # What gateways and agents need while jobs end is served longer than what operators use.
        await stack.enter_async_context(
            rpc.serve(
                paths.authorization_socket, [_authorization(workshop, paths, credentials)], stop_grace_s=0.2
            )
        )
        await stack.enter_async_context(rpc.serve(paths.telemetry_socket, [_span_intake(catalog)]))
        stack.push_async_callback(asyncio.to_thread, telemetry.flush)
        running = await stack.enter_async_context(
            engine.start(
                workshop,
                Runner(workshop, sweeper),
                paths.state / "dbos.sqlite",
                concurrency=concurrency,
            )
        )
        await stack.enter_async_context(_in_background(sweeper))
        services = _services(workshop, Intake(workshop, running), paths, credentials)
        await stack.enter_async_context(rpc.serve(paths.api_socket, services))
        log.info("the API serves on %s", paths.api_socket)
        await stopping.wait()


def _remove_stale_sockets(exports_dir: Path) -> None:
    """Of a hub that was killed; the programs behind them died with it."""
    for path in exports_dir.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _open_repositories(catalog: Catalog, directories: Mapping[str, Path]) -> dict[str, Repository]:
    opened = {}
    for name, directory in directories.items():
        repository = await open_repository(name, directory)
        facts = (name, str(repository.root), repository.repository_id)
        await catalog.run(lambda connection, facts=facts: repositories.bind(connection, *facts))  # type: ignore[misc]
        opened[name] = repository
    return opened


@contextlib.asynccontextmanager
async def _in_background(sweeper: SnapshotSweeper) -> AsyncIterator[None]:
    task = asyncio.create_task(sweeper.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _authorization(workshop: Workshop, paths: HubPaths, credentials: CredentialsPaths) -> rpc.Service:
    fixed = {"credentials": credentials.agents_socket, "telemetry": paths.telemetry_socket}
    return rpc.Service(
        "sendense.hub.v1.AuthorizationService",
        authorization_service_pb2_grpc.add_AuthorizationServiceServicer_to_server,
        AuthorizationService(workshop.catalog, workshop.exports, fixed),
    )


def _span_intake(catalog: Catalog) -> rpc.Service:
    return rpc.Service(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        add_TraceServiceServicer_to_server,
        SpanIntake(catalog),
    )


def _services(
    workshop: Workshop, intake: Intake, paths: HubPaths, credentials: CredentialsPaths
) -> list[rpc.Service]:
    return [
        rpc.Service(
            "sendense.hub.v1.BackupService",
            backup_service_pb2_grpc.add_BackupServiceServicer_to_server,
            BackupService(intake),
        ),
        rpc.Service(
            "sendense.hub.v1.JobService",
            job_service_pb2_grpc.add_JobServiceServicer_to_server,
            JobService(workshop.catalog, workshop.board),
        ),
        rpc.Service(
            "sendense.hub.v1.PointService",
            point_service_pb2_grpc.add_PointServiceServicer_to_server,
            PointService(workshop),
        ),
        rpc.Service(
            "sendense.hub.v1.SiteService",
            site_service_pb2_grpc.add_SiteServiceServicer_to_server,
            SiteService(workshop),
        ),
        rpc.Service(
            "sendense.hub.v1.SystemService",
            system_service_pb2_grpc.add_SystemServiceServicer_to_server,
            SystemService(workshop, paths, credentials),
        ),
        rpc.Service(
            "sendense.hub.v1.VcenterService",
            vcenter_service_pb2_grpc.add_VcenterServiceServicer_to_server,
            VcenterService(workshop, intake),
        ),
    ]


def _repository(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, Path(path)


def main() -> int:
    """Runs the API; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sendense_hub.api",
        description="Catalog, jobs and gRPC services of a hub. Started by sendense-hub.",
    )
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="the hub's state directory")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the hub's socket directory")
    parser.add_argument(
        "--credentials-run",
        type=Path,
        required=True,
        metavar="DIR",
        help="socket directory of the credentials service",
    )
    parser.add_argument(
        "--repository",
        type=_repository,
        action="append",
        metavar="NAME=PATH",
        help=f"where points are kept (default: {DEFAULT_REPOSITORY}=STATE/repository)",
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=_DEFAULT_CONCURRENCY,
        metavar="N",
        help="jobs that run at once (default %(default)s)",
    )
    options = parser.parse_args()
    paths = HubPaths(options.state, options.run)
    credentials = CredentialsPaths(Path("/nonexistent"), options.credentials_run)
    directories = dict(options.repository or [(DEFAULT_REPOSITORY, options.state / "repository")])
    return run_service(
        "sendense-hub",
        lambda stopping: serve(paths, credentials, directories, options.concurrency, stopping),
        spans_socket=paths.telemetry_socket,
    )


if __name__ == "__main__":
    sys.exit(main())
