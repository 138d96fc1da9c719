# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of its agent, and the way to a vCenter session."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_agent.clients.credentials import redeem
from sendense_agent.config import AgentConfig, load_config
from sendense_agent.datapath.sources import vddk_version
from sendense_agent.vsphere import Session, VcenterTarget, open_session
from sendense_common import telemetry
from sendense_common.keys import load_agent_keys
from sendense_common.paths import AgentPaths


@dataclass(frozen=True)
class Site:
    """One agent's files and settings."""

    paths: AgentPaths
    config: AgentConfig

    @classmethod
    def load(cls, paths: AgentPaths) -> Site:
        """Reads the configuration."""
        return cls(paths, load_config(paths))

    @contextlib.asynccontextmanager
    async def session(self, access: VcenterAccess, operation: Operation.ValueType) -> AsyncIterator[Session]:
        """A vCenter session with the password that the lease opens; it is known to this process alone.

        Raises:
            SendenseError: see `redeem` and `open_session`.
        """
        target = VcenterTarget.of(access)
        async with contextlib.AsyncExitStack() as stack:
            with telemetry.span(f"log in to {target.name}", host=target.host):
                login = await redeem(
                    self.paths.credentials_socket,
                    load_agent_keys(self.paths.lease_keys_file),
                    agent_id=self.config.agent_id,
                    lease_id=access.lease_id,
                    operation=operation,
                )
                session = await stack.enter_async_context(
                    open_session(target, login.username, login.password)
                )
                session.vddk = await vddk_version(self.config.vddk_libdir)
            yield session
