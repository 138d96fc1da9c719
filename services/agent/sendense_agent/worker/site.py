# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of its agent, and the way to a vCenter session."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.agent.v1.worker_record_pb2 import WorkerRecord
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_agent.clients.credentials import Login, redeem
from sendense_agent.config import AgentConfig, load_config
from sendense_agent.datapath.sources import vddk_version
from sendense_agent.vsphere import REFUSED_LOGIN, Secrets, Session, VcenterTarget, open_session
from sendense_agent.worker.bound_target import bound_target
from sendense_agent.worker.channel import Channel
from sendense_agent.worker.logins import MoreLeases
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.keys import load_agent_keys
from sendense_common.paths import AgentPaths


@dataclass(frozen=True)
class Site:
    """One agent's files and settings."""

    paths: AgentPaths
    config: AgentConfig
    channel: Channel | None = None
    """To the agent's lasting process."""

    @classmethod
    def load(cls, paths: AgentPaths, channel: Channel) -> Site:
        """Reads the configuration."""
        return cls(paths, load_config(paths), channel)

    def remove_dead_sockets(self) -> None:
        """Of movers that were killed: nobody listens there any more."""
        for path in self.paths.exports_dir.glob("*.sock"):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.setblocking(False)
                try:
                    asking.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink(missing_ok=True)
                except OSError:
                    pass  # it is busy, or just gone

    @contextlib.asynccontextmanager
    async def session(
        self, access: VcenterAccess, operation: Operation.ValueType, more: MoreLeases | None = None
    ) -> AsyncIterator[Session]:
        """A vCenter session with the password that the lease opens; it is known to this process alone.

        Args:
            access: the vCenter, with a lease.
            operation: what the lease is for.
            more: gives more leases; None: a session that vCenter forgets is lost.

        Raises:
            SendenseError: see `redeem`, `bound_target` and `open_session`.
        """
        async with contextlib.AsyncExitStack() as stack:
            with telemetry.span(f"log in to {access.name}", host=access.host):
                login = await self._open_lease(access, operation)
                async with self._recorded_login(access, operation, login.username):
                    target = bound_target(access, login.endpoint)
                    again = self._again(target, operation, more) if more is not None else None
                    session = await stack.enter_async_context(
                        open_session(target, login.username, login.password, again=again)
                    )
                del login  # from here on nothing holds the password
                session.vddk = await vddk_version(self.config.vddk_libdir)
            yield session

    async def _open_lease(self, access: VcenterAccess, operation: Operation.ValueType) -> Login:
        return await redeem(
            self.paths.credentials_socket,
            load_agent_keys(self.paths.lease_keys_file),
            agent_id=self.config.agent_id,
            lease_id=access.lease_id,
            credential_id=access.credential_id,
            operation=operation,
        )

    def _again(self, target: VcenterTarget, operation: Operation.ValueType, more: MoreLeases) -> Secrets:
        @contextlib.asynccontextmanager
        async def again() -> AsyncIterator[tuple[str, str]]:
            """User name and password with another lease; the block is the login with them."""
            async with more.another() as access:
                with telemetry.span(f"log in to {access.name} again", host=access.host):
                    login = await self._open_lease(access, operation)
                    async with self._recorded_login(access, operation, login.username):
                        if bound_target(access, login.endpoint) != target:
                            raise SendenseError(
                                Reason.REASON_VCENTER_SESSION_LOST,
                                f"address or trust of vCenter {target.name} were changed while this ran",
                                remedy="The backup goes on with the new ones.",
                                vcenter=target.name,
                            )
                        yield login.username, login.password

        return again

    @contextlib.asynccontextmanager
    async def _recorded_login(
        self, access: VcenterAccess, operation: Operation.ValueType, username: str
    ) -> AsyncIterator[None]:
        """How the login of the block ended goes to the audit log."""
        facts = {
            "host": f"{access.host}:{access.port}",
            "user": username,
            "operation": Operation.Name(operation).removeprefix("OPERATION_").lower(),
        }
        record = WorkerRecord(act="vcenter.login", subject=access.name, outcome="failed", facts=facts)
        try:
            yield
            record.outcome = "done"
        except SendenseError as error:
            if error.reason in REFUSED_LOGIN:
                record.outcome = "refused"
            record.facts["reason"] = error.reason_name
            raise
        finally:
            if self.channel is not None:
                await self.channel.send(record)
