# SPDX-License-Identifier: Apache-2.0
"""The running service: its keys, one database, a socket for each audience."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine

from sendense.credentials.v1.credential_service_pb2_grpc import add_CredentialServiceServicer_to_server
from sendense.credentials.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from sendense.credentials.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server
from sendense.credentials.v1.redemption_service_pb2_grpc import add_RedemptionServiceServicer_to_server
from sendense_common import audit_log, rpc
from sendense_common.paths import CredentialsPaths, open_to_group, private_dir
from sendense_common.process import forbid_core_dumps
from sendense_common.rpc.audit_log_service import AuditLogServicer, served
from sendense_common.service import only_one
from sendense_credentials.catalog import open_catalog
from sendense_credentials.catalog.audit_heads import AuditHeads
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.key_options import KeyOptions
from sendense_credentials.rpc.credential_service import CredentialServicer
from sendense_credentials.rpc.key_service import KeyServicer
from sendense_credentials.rpc.lease_service import LeaseServicer
from sendense_credentials.rpc.redemption_service import RedemptionServicer
from sendense_credentials.vault import (
    CredentialVault,
    KeyVault,
    LeaseVault,
    Rewrapping,
)

log = logging.getLogger(__name__)


async def serve(
    paths: CredentialsPaths, key_options: KeyOptions, stopping: asyncio.Event, socket_group: int | None = None
) -> None:
    """Serves until `stopping` is set. The operators' socket comes last: when it answers, all do.

    Args:
        paths: state and sockets.
        key_options: where the keys are.
        stopping: ends it.
        socket_group: whose members may use the hub's and the agents' sockets; None: only this user.

    Raises:
        SendenseError: there is no key, another process uses the state directory, the database is unusable, or
            this user is not in the group.
    """
    forbid_core_dumps()
    private_dir(paths.run)
    private_dir(paths.operator_socket.parent)
    if socket_group is not None:
        open_to_group(paths.run, socket_group, 0o710)
    async with contextlib.AsyncExitStack() as held:
        keys = await held.enter_async_context(key_options.opened(system_clock))
        held.enter_context(only_one(paths.state / "credentials.lock", "credentials service"))
        written = await held.enter_async_context(audit_log.opened(paths.audit_log_dir, "credentials"))
        catalog = await held.enter_async_context(open_catalog(paths.database_file))
        credentials = CredentialVault(catalog, keys, system_clock)
        leases = LeaseVault(catalog, keys, system_clock)
        rewrapping = Rewrapping(catalog, keys)
        await credentials.report_unreadable()
        await held.enter_async_context(_working(rewrapping.run()))
        witness = audit_log.Witness(written, AuditHeads(catalog))
        await held.enter_async_context(_working(witness.watch_own()))
        also = {
            paths.hub_socket: [served(AuditLogServicer(written, head_only=True))],
            paths.operator_socket: [served(AuditLogServicer(written, witness))],
        }
        for path, services in (
            (
                paths.agents_socket,
                [
                    rpc.Service(
                        "sendense.credentials.v1.RedemptionService",
                        add_RedemptionServiceServicer_to_server,
                        RedemptionServicer(leases),
                    )
                ],
            ),
            (
                paths.hub_socket,
                [
                    rpc.Service(
                        "sendense.credentials.v1.LeaseService",
                        add_LeaseServiceServicer_to_server,
                        LeaseServicer(leases),
                    )
                ],
            ),
            (
                paths.operator_socket,
                [
                    rpc.Service(
                        "sendense.credentials.v1.CredentialService",
                        add_CredentialServiceServicer_to_server,
                        CredentialServicer(credentials, catalog, system_clock),
                    ),
                    rpc.Service(
                        "sendense.credentials.v1.KeyService",
                        add_KeyServiceServicer_to_server,
                        KeyServicer(KeyVault(catalog, keys, rewrapping), paths.database_file),
                    ),
                ],
            ),
        ):
            all_of_it = [*services, *also.get(path, [])]
            if path == paths.operator_socket:
                serving = rpc.serve(path, all_of_it)
            else:
                bounds = rpc.AGENTS if path == paths.agents_socket else None
                serving = rpc.serve(path, all_of_it, identify=_the_hub, bounds=bounds, group=socket_group)
            await held.enter_async_context(serving)
        log.info("credentials service is ready in %s; keys are in %s", paths.run, keys.active.place)
        await stopping.wait()


async def _the_hub(_: object) -> rpc.Caller:
    """Who opens its socket, or the agents', which its tunnel leads to. Neither serves what operators may."""
    return rpc.Caller("hub")


@contextlib.asynccontextmanager
async def _working(work: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Runs `work` beside the block, and ends it with the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
