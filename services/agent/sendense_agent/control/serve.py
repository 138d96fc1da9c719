# SPDX-License-Identifier: Apache-2.0
"""Running an agent: its gRPC socket, the tunnel that publishes it, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import AsyncIterator
from dataclasses import asdict

from sendense.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from sendense_agent.config import load_config, ssh_key_file
from sendense_agent.control.jobs import Jobs
from sendense_agent.control.reconciliation import Reconciliation
from sendense_agent.control.worker_process import WorkerCommand, worker_command
from sendense_agent.datapath.sources import vddk_version
from sendense_agent.rpc.agent_service import AgentService
from sendense_common import audit_log, rpc
from sendense_common.keys import ensure_agent_keys
from sendense_common.paths import AgentPaths, private_dir
from sendense_common.rpc.audit_log_service import AuditLogServicer, served
from sendense_common.service import only_one
from sendense_common.tunnel import Tunnel, ensure_key, keep_connected

log = logging.getLogger(__name__)


async def serve(paths: AgentPaths, stopping: asyncio.Event, *, command: WorkerCommand | None = None) -> None:
    """Runs an agent until `stopping` is set; its jobs clean up before it returns.

    Args:
        paths: of the agent.
        stopping: ends it.
        command: starts a worker; by default this package's.

    Raises:
        SendenseError: it was not configured, or another agent uses the state directory.
    """
    private_dir(paths.state)
    private_dir(paths.run)
    config = load_config(paths)
    command = command or worker_command(paths)
    with only_one(paths.state / "agent.lock", "agent"):
        ensure_key(ssh_key_file(paths), config.agent_id)
        ensure_agent_keys(paths.lease_keys_file)
        for leftover in (paths.exports_dir, paths.run / "n"):
            shutil.rmtree(leftover, ignore_errors=True)
        if version := await vddk_version(config.vddk_libdir):
            log.info("disks are read with %s", version)
        jobs, reconciliation = Jobs(command, config.limits), Reconciliation(paths)
        service = rpc.Service(
            "sendense.agent.v1.AgentService",
            add_AgentServiceServicer_to_server,
            AgentService(config.agent_id, command, jobs, reconciliation, vddk_libdir=config.vddk_libdir),
        )

        @contextlib.asynccontextmanager
        async def connected(tunnel: Tunnel) -> AsyncIterator[None]:
            async with (
                tunnel.forward("credentials", paths.credentials_socket),
                tunnel.forward("telemetry", paths.telemetry_socket),
            ):
                await tunnel.publish(paths.grpc_socket)
                yield

        tunnel_ended = asyncio.Event()
        limits = asdict(config.limits)
        async with (
            audit_log.opened(paths.audit_log_dir, f"agent:{config.agent_id}", **limits) as written,
            rpc.serve(paths.grpc_socket, [service, served(AuditLogServicer(written))]),
            reconciliation.running(),
        ):
            tunnel = asyncio.create_task(keep_connected(config.tunnel(paths), connected, tunnel_ended))
            try:
                await _until(stopping, tunnel)
            finally:
                # The tunnel stays until the jobs have cleaned up and the hub has heard of it.
                await jobs.stop()
                await _let_streams_end(jobs)
                tunnel_ended.set()
                await asyncio.gather(tunnel, return_exceptions=True)


async def _until(stopping: asyncio.Event, tunnel: asyncio.Task[None]) -> None:
    """Returns when the agent is to stop; an agent whose tunnel ended by a defect is of no use."""
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({stop, tunnel}, return_when=asyncio.FIRST_COMPLETED)
        if tunnel.done():
            tunnel.result()
    finally:
        stop.cancel()


async def _let_streams_end(jobs: Jobs) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2.0):
            await jobs.drained()
