# SPDX-License-Identifier: Apache-2.0
"""The running service: one key file, one database, a socket for each audience."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from sendense.credentials.v1.credential_service_pb2_grpc import add_CredentialServiceServicer_to_server
from sendense.credentials.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server
from sendense.credentials.v1.redemption_service_pb2_grpc import add_RedemptionServiceServicer_to_server
from sendense_common import rpc
from sendense_common.paths import CredentialsPaths, private_dir
from sendense_common.process import forbid_core_dumps
from sendense_common.service import only_one
from sendense_credentials.catalog import open_catalog
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.rpc.credential_service import CredentialServicer
from sendense_credentials.rpc.lease_service import LeaseServicer
from sendense_credentials.rpc.redemption_service import RedemptionServicer
from sendense_credentials.vault import CredentialVault, LeaseVault, load_key_file

log = logging.getLogger(__name__)


async def serve(paths: CredentialsPaths, key_file: Path, stopping: asyncio.Event) -> None:
    """Serves until `stopping` is set. The operators' socket comes last: when it answers, all do.

    Raises:
        SendenseError: there is no key, another process uses the state directory, or the database is unusable.
    """
    forbid_core_dumps()
    keys = load_key_file(key_file)
    private_dir(paths.run)
    async with contextlib.AsyncExitStack() as held:
        held.enter_context(only_one(paths.state / "credentials.lock", "credentials service"))
        catalog = await held.enter_async_context(open_catalog(paths.database_file))
        credentials = CredentialVault(catalog, keys, system_clock)
        leases = LeaseVault(catalog, keys, system_clock)
        await credentials.report_unreadable()
        for path, name, add, servicer in (
            (
                paths.agents_socket,
                "sendense.credentials.v1.RedemptionService",
                add_RedemptionServiceServicer_to_server,
                RedemptionServicer(leases),
            ),
            (
                paths.hub_socket,
                "sendense.credentials.v1.LeaseService",
                add_LeaseServiceServicer_to_server,
                LeaseServicer(leases),
            ),
            (
                paths.operator_socket,
                "sendense.credentials.v1.CredentialService",
                add_CredentialServiceServicer_to_server,
                CredentialServicer(credentials, catalog, system_clock),
            ),
        ):
            await held.enter_async_context(rpc.serve(path, [rpc.Service(name, add, servicer)]))
        log.info("credentials service is ready in %s; new secrets go under %s", paths.run, keys.active_key_id)
        await stopping.wait()
