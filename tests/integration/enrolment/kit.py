# SPDX-License-Identifier: Apache-2.0
"""A centre in small: the hub's gateway, what is served for enrolment, and the operator's commands."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.tunnel.kit import accepting

from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.credentials.v1 import credential_service_pb2_grpc
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import (
    authorization_service_pb2_grpc,
    enrolment_service_pb2_grpc,
    invitation_service_pb2,
    invitation_service_pb2_grpc,
    site_service_pb2_grpc,
)
from sendense.hub.v1.invitation_service_pb2_grpc import InvitationServiceStub
from sendense_agent.control.enrolling import Asked, enrol
from sendense_cli import agents
from sendense_cli.commands.agent import approve_agent, revoke_agent
from sendense_cli.session import Session
from sendense_common import rpc
from sendense_common.paths import AgentPaths, HubPaths, Installation, private_dir
from sendense_common.tunnel import ensure_key, fingerprint
from sendense_credentials.catalog import open_catalog as open_credentials
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.rpc.credential_service import CredentialServicer
from sendense_hub.catalog import Catalog, open_catalog
from sendense_hub.clients.leases import Leases
from sendense_hub.domain import times
from sendense_hub.domain.point_locks import PointLocks
from sendense_hub.gateway.handover import GatewayEnd, SupervisorEnd, pair
from sendense_hub.gateway.limits import Limits
from sendense_hub.gateway.server import run
from sendense_hub.jobs.board import Board
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.jobs.exports import ExportTable
from sendense_hub.jobs.guarded_sites import GuardedSites
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import PartFiles
from sendense_hub.rpc.authorization_service import AuthorizationService
from sendense_hub.rpc.enrolment_service import EnrolmentService
from sendense_hub.rpc.invitation_service import InvitationService
from sendense_hub.rpc.site_service import SiteService

SITE = "paris"
WITHIN_S = 30.0


@dataclass
class Centre:
    """What runs."""

    directory: Path
    paths: HubPaths
    catalog: Catalog
    workshop: Workshop
    host_key: str
    port: int = 0
    offset_us: int = 0
    """How far the hub's clock is ahead."""
    waiting: list[asyncio.Task[bool]] = field(default_factory=list)

    @property
    def installation(self) -> Installation:
        return Installation(self.directory)

    def clock(self) -> int:
        return times.now_us() + self.offset_us

    @property
    def session(self) -> Session:
        return Session(self.directory, as_json=True)

    async def invited(self, site: str = SITE, *, rotate: bool = False) -> Asked:
        """What the line of a new invitation says."""
        async with self.session.hub() as hub:
            request = invitation_service_pb2.InviteSiteRequest(site_name=site, rotate=rotate)
            made = await InvitationServiceStub(hub).InviteSite(request)
        return Asked(site, "127.0.0.1", self.port, fingerprint(made.host_public_key), made.code)

    def agent(self, name: str = "agent") -> AgentPaths:
        return AgentPaths(self.directory / name, self.directory / "run" / name)

    async def shows(self, asked: Asked, name: str = "agent") -> str:
        """The fingerprint that an agent shows after its keys are at the hub; it goes on waiting."""
        said: asyncio.Queue[str] = asyncio.Queue()
        task = asyncio.create_task(enrol(self.agent(name), asked, said.put_nowait))
        self.waiting.append(task)
        hearing = asyncio.create_task(said.get())
        async with asyncio.timeout(WITHIN_S):
            await asyncio.wait({task, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if not hearing.done():
            hearing.cancel()
            await task
        return next(word for word in hearing.result().split() if word.startswith("SHA256:"))

    async def let_in(self, name: str = "agent", *, rotate: bool = False) -> str:
        """From the invitation to an agent with keys in their places: its fingerprint."""
        shown = await self.shows(await self.invited(rotate=rotate), name)
        await self.approve(shown)
        async with asyncio.timeout(WITHIN_S):
            assert await self.waiting[-1]
        return shown

    async def approve(self, shown: str) -> None:
        """`sendense agent approve`."""
        await approve_agent(self.session, SITE, shown)

    async def reject(self) -> None:
        async with self.session.hub() as hub:
            request = invitation_service_pb2.RejectInvitationRequest(site_name=SITE)
            await InvitationServiceStub(hub).RejectInvitation(request)

    async def revoke(self) -> None:
        """`sendense agent revoke`."""
        await revoke_agent(self.session, SITE)

    async def listed(self, site: str = SITE) -> dict[str, Any]:
        """A line of `sendense agent list`."""
        return next(each.as_dict() for each in await agents.known(self.session) if each.name == site)

    async def lease_keys(self) -> dict[str, bytes]:
        """The sealing keys that the credentials service has."""
        async with self.session.credentials() as channel:
            answer = await CredentialServiceStub(channel).ListAgents(credentials_pb.ListAgentsRequest())
        return {each.agent_id: each.sealing_public_key for each in answer.agents}


@contextlib.asynccontextmanager
async def centre(directory: Path, limits: Limits | None = None) -> AsyncIterator[Centre]:
    """A running one."""
    here = Installation(directory)
    paths = here.hub
    for each in (paths.state, paths.run, paths.agents_dir, paths.exports_dir):
        private_dir(each)
    async with contextlib.AsyncExitStack() as stack:
        catalog = await stack.enter_async_context(open_catalog(f"sqlite:///{paths.state / 'catalog.sqlite'}"))
        host_key = ensure_key(paths.host_key_file, "hub")
        sites = GuardedSites(paths.agents_dir, Leases(here.credentials.hub_socket), catalog)
        workshop = Workshop(
            catalog,
            Board(catalog),
            sites,
            ExportTable(),
            PointLocks(),
            {},
            paths.exports_dir,
            PartFiles(paths.unfinished_exports_dir),
        )
        made = Centre(directory, paths, catalog, workshop, host_key)
        await _serve(stack, made, Enrolment(workshop, clock=made.clock))
        await _listen(stack, made, limits or Limits(recheck_s=0.2))
        try:
            yield made
        finally:
            for task in made.waiting:
                task.cancel()
            await asyncio.gather(*made.waiting, return_exceptions=True)


async def _serve(stack: contextlib.AsyncExitStack, made: Centre, enrolment: Enrolment) -> None:
    paths = made.paths
    fixed = {"credentials": made.installation.credentials.agents_socket}
    keys = await stack.enter_async_context(open_credentials(made.installation.credentials.database_file))
    # Of its calls, only those about agents are used here.
    credentials = CredentialServicer(None, keys, system_clock)  # type: ignore[arg-type]
    authorization = AuthorizationService(made.catalog, made.workshop.exports, fixed)
    served: list[tuple[Path, bool, list[tuple[Any, object]]]] = [
        (paths.authorization_socket, False, [
            (authorization_service_pb2_grpc.add_AuthorizationServiceServicer_to_server, authorization),
        ]),
        (paths.enrolment_socket, True, [
            (enrolment_service_pb2_grpc.add_EnrolmentServiceServicer_to_server, EnrolmentService(enrolment)),
        ]),
        (paths.api_socket, False, [
            (invitation_service_pb2_grpc.add_InvitationServiceServicer_to_server,
             InvitationService(enrolment, paths)),
            (site_service_pb2_grpc.add_SiteServiceServicer_to_server, SiteService(made.workshop, enrolment)),
        ]),
        (made.installation.credentials.operator_socket, False, [
            (credential_service_pb2_grpc.add_CredentialServiceServicer_to_server, credentials),
        ]),
    ]  # fmt: skip
    for socket, strangers, services in served:
        bounds = rpc.STRANGERS if strangers else None
        named = [rpc.Service(type(servicer).__name__, add, servicer) for add, servicer in services]
        await stack.enter_async_context(rpc.serve(socket, named, stop_grace_s=0, bounds=bounds))


async def _listen(stack: contextlib.AsyncExitStack, made: Centre, limits: Limits) -> None:
    ours, theirs = pair()
    end, handover, stopping = SupervisorEnd(ours), GatewayEnd(theirs.detach()), asyncio.Event()

    def took(port: int) -> None:
        made.port = port
        made.paths.endpoint_file.write_text(f"127.0.0.1:{port}\n")

    async def stop() -> None:
        stopping.set()
        await gateway
        end.close()
        handover.close()

    await stack.enter_async_context(accepting(took, end))
    gateway = asyncio.create_task(run(made.paths, limits, handover, stopping))
    stack.push_async_callback(stop)
