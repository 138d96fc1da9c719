# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.api`, started by the supervisor: what runs there, from its begin to its end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn

from sendense_common import audit_log, rpc, telemetry
from sendense_common.paths import CredentialsPaths, HubPaths, private_dir
from sendense_common.service import died_before, only_one_after_another, run_service, say_taken_over
from sendense_hub.api import services
from sendense_hub.api.listening import add_options, listener_of
from sendense_hub.catalog import Catalog, open_catalog, repositories, vcenters
from sendense_hub.clients.leases import Leases
from sendense_hub.domain.point_locks import PointLocks
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs import engine
from sendense_hub.jobs.audit_watch import AuditWatch
from sendense_hub.jobs.board import Board
from sendense_hub.jobs.catalog_copier import CatalogCopier
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.jobs.exports import ExportTable
from sendense_hub.jobs.guarded_sites import GuardedSites
from sendense_hub.jobs.intake import DEFAULT_REPOSITORY, Intake
from sendense_hub.jobs.reconciliation import Reconciler
from sendense_hub.jobs.recovery import recover
from sendense_hub.jobs.runner import Runner
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.waker import Waker
from sendense_hub.jobs.workshop import LONGEST_CHAIN, Workshop
from sendense_hub.repository import AuditPolicy, PartFiles, Repository, open_repository
from sendense_hub.rpc.admission import Admission
from sendense_hub.rpc.door import Door

log = logging.getLogger(__name__)

_DEFAULT_CONCURRENCY = 4
_BEFORE_ENDS_WITHIN_S = 5.0
_DEFAULT_COPY_HOURS = 6.0
_COPY_AT_MOST_EVERY_S = 300.0
_DEFAULT_AUDIT = AuditPolicy(percent=1.0)


async def serve(
    paths: HubPaths,
    credentials: CredentialsPaths,
    directories: Mapping[str, Path],
    concurrency: int,
    patience: Patience,
    audit: AuditPolicy,
    copy_every_s: float,
    longest_chain: int,
    listener: rpc.Listener | None,
    stopping: asyncio.Event,
) -> None:
    """Runs the API until `stopping` is set.

    Args:
        paths: of this hub.
        credentials: of the credentials service; only its sockets are used.
        directories: of the repositories, by name.
        concurrency: jobs that run at once.
        patience: with what interrupts jobs.
        audit: how much of what did not change is read again.
        copy_every_s: between copies of the catalog in the repositories; 0: none are made.
        longest_chain: layers of a disk that are built on each other, at most.
        listener: where operators connect, besides the unix socket.
        stopping: ends it.
    """
    for directory in (paths.state, paths.run, paths.exports_dir, paths.agents_dir):
        private_dir(directory)
    async with contextlib.AsyncExitStack() as stack:
        # The API of a supervisor that was killed still ends its jobs.
        await stack.enter_async_context(
            only_one_after_another(paths.state / "api.lock", "hub", within_s=_BEFORE_ENDS_WITHIN_S)
        )
        settings: dict[str, Any] = {
            "concurrency": concurrency,
            "wait_hours": patience.absent_s / 3600,
            "tries": patience.tries,
            "longest_chain": longest_chain,
            "cbt_audit_percent": audit.percent,
        }
        written = await stack.enter_async_context(audit_log.opened(paths.audit_log_dir, "hub", **settings))
        _remove_stale_sockets(paths.exports_dir)
        catalog = await stack.enter_async_context(open_catalog(f"sqlite:///{paths.state / 'catalog.sqlite'}"))
        sites = GuardedSites(paths.agents_dir, Leases(credentials.hub_socket), catalog)
        await sites.know_revoked()
        workshop = Workshop(
            catalog=catalog,
            board=Board(catalog),
            sites=sites,
            exports=ExportTable(),
            locks=PointLocks(),
            repositories=await _open_repositories(catalog, directories),
            exports_dir=paths.exports_dir,
            parts=PartFiles(paths.unfinished_exports_dir),
            audit=audit,
            longest_chain=longest_chain,
        )
        await recover(workshop, died_before())
        say_taken_over()
        sweeper = SnapshotSweeper(catalog, sites)
        # What gateways and agents need while jobs end is served longer than what operators use.
        await stack.enter_async_context(
            rpc.serve(
                paths.authorization_socket,
                [services.authorization(workshop, paths, credentials)],
                stop_grace_s=0.2,
            )
        )
        await stack.enter_async_context(
            rpc.serve(paths.telemetry_socket, [services.span_intake(catalog)], bounds=rpc.AGENTS)
        )
        stack.push_async_callback(asyncio.to_thread, telemetry.flush)
        running = await stack.enter_async_context(
            engine.start(
                workshop,
                Runner(workshop, sweeper, patience),
                paths.state / "dbos.sqlite",
                concurrency=concurrency,
            )
        )
        await stack.enter_async_context(_in_background(sweeper.run()))
        await stack.enter_async_context(_in_background(Waker(workshop, running, patience).run()))
        if copy_every_s:
            copier = CatalogCopier(
                workshop,
                paths.state / "catalog.sqlite",
                at_most_every_s=min(_COPY_AT_MOST_EVERY_S, copy_every_s),
                at_least_every_s=copy_every_s,
            )
            await stack.enter_async_context(_in_background(copier.run()))
        known = {vcenter.name for vcenter in await catalog.run(vcenters.listed)}
        reconciler = Reconciler(workshop, sweeper, known)
        await stack.enter_async_context(_in_background(reconciler.run()))
        watch = AuditWatch(written, catalog, sites, credentials.hub_socket)
        await stack.enter_async_context(_in_background(watch.run()))
        admission = Admission(catalog)
        await admission.load()
        door = Door(listener, admission)
        enrolment = Enrolment(workshop)
        await stack.enter_async_context(
            rpc.serve(
                paths.enrolment_socket,
                [services.enrolment(enrolment)],
                stop_grace_s=0.2,
                bounds=rpc.STRANGERS,
            )
        )
        intake = Intake(workshop, running)
        offered = services.for_operators(
            workshop, intake, reconciler, enrolment, watch, paths, credentials, door
        )
        await stack.enter_async_context(door.open(offered, paths.api_endpoint_file))
        await stack.enter_async_context(rpc.serve(paths.api_socket, offered))
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
async def _in_background(work: Coroutine[Any, Any, NoReturn]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
    parser.add_argument(
        "--wait-hours",
        type=float,
        default=Patience().absent_s / 3600,
        metavar="H",
        help="how long an interrupted job waits for a site, a vCenter or room (default %(default)s)",
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=Patience().tries,
        metavar="N",
        help="attempts in a row that may fail without getting further (default %(default)s)",
    )
    parser.add_argument(
        "--longest-chain",
        type=int,
        default=LONGEST_CHAIN,
        metavar="N",
        help="layers of a disk that are built on each other, at most (default %(default)s)",
    )
    parser.add_argument(
        "--cbt-audit-percent",
        type=float,
        default=_DEFAULT_AUDIT.percent,
        metavar="P",
        help="share of what did not change that is read again at each incremental (default %(default)s)",
    )
    parser.add_argument(
        "--cbt-audit-max-bytes",
        type=int,
        default=_DEFAULT_AUDIT.max_bytes,
        metavar="N",
        help="of that, at most so much of each disk and backup (default %(default)s)",
    )
    parser.add_argument(
        "--catalog-copy-hours",
        type=float,
        default=_DEFAULT_COPY_HOURS,
        metavar="H",
        help="how often the catalog is copied into each repository; 0: never (default %(default)s)",
    )
    add_options(parser)
    options = parser.parse_args()
    listener = listener_of(parser, options)
    paths = HubPaths(options.state, options.run)
    credentials = CredentialsPaths(Path("/nonexistent"), options.credentials_run)
    directories = dict(options.repository or [(DEFAULT_REPOSITORY, options.state / "repository")])
    patience = Patience(absent_s=options.wait_hours * 3600, tries=options.tries)
    audit = AuditPolicy(options.cbt_audit_percent, options.cbt_audit_max_bytes)
    return run_service(
        "sendense-hub",
        lambda stopping: serve(
            paths,
            credentials,
            directories,
            options.concurrency,
            patience,
            audit,
            options.catalog_copy_hours * 3600,
            options.longest_chain,
            listener,
            stopping,
        ),
        spans_socket=paths.telemetry_socket,
    )


if __name__ == "__main__":
    sys.exit(main())
