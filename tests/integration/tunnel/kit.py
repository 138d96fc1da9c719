# SPDX-License-Identifier: Apache-2.0
"""A gateway on 127.0.0.1 with an authorization service that tests can steer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import authorization_service_pb2 as pb
from sendense.hub.v1.authorization_service_pb2_grpc import (
    AuthorizationServiceServicer,
    add_AuthorizationServiceServicer_to_server,
)
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths, private_dir
from sendense_common.tunnel import TunnelConfig, ensure_key, fingerprint
from sendense_hub.gateway.handover import GatewayEnd, SupervisorEnd, pair
from sendense_hub.gateway.limits import Limits
from sendense_hub.gateway.server import run


class FakeAuthorization(AuthorizationServiceServicer):
    """Says yes to what is in its tables; a target with an owner is for that agent only."""

    def __init__(self) -> None:
        self.agents: dict[str, str] = {}
        self.targets: dict[str, Path] = {}
        self.owners: dict[str, str] = {}
        self.watchers: list[asyncio.Queue[pb.WatchRevocationsResponse]] = []
        self.pushing = True
        self.refusals: list[pb.ReportRefusalRequest] = []

    async def IdentifyKey(self, request, context):
        if request.fingerprint not in self.agents:
            raise SendenseError(Reason.REASON_SITE_NOT_FOUND, "nobody has this key")
        return pb.IdentifyKeyResponse(agent_id=self.agents[request.fingerprint])

    async def Authorize(self, request, context):
        owner = self.owners.get(request.target)
        if request.target not in self.targets or (owner and owner != self.agents[request.fingerprint]):
            raise SendenseError(Reason.REASON_TUNNEL_REFUSED, "no job of yours")
        return pb.AuthorizeResponse(socket_path=str(self.targets[request.target]))

    async def ReportRefusal(self, request, context):
        self.refusals.append(request)
        return pb.ReportRefusalResponse()

    async def WatchRevocations(self, request, context):
        queue: asyncio.Queue[pb.WatchRevocationsResponse] = asyncio.Queue()
        self.watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.watchers.remove(queue)


@dataclass
class Hub:
    """What a test needs of one hub."""

    paths: HubPaths
    authorization: FakeAuthorization
    host_key: str
    port: int = 0
    api: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    end: SupervisorEnd | None = None

    async def start_api(self) -> None:
        service = rpc.Service(
            "sendense.hub.v1.AuthorizationService",
            add_AuthorizationServiceServicer_to_server,
            self.authorization,
        )
        await self.api.enter_async_context(
            rpc.serve(self.paths.authorization_socket, [service], stop_grace_s=0)
        )

    async def stop_api(self) -> None:
        await self.api.aclose()

    def enrol(self, agent_id: str = "site-a", key: str | None = None, **settings) -> TunnelConfig:
        file = self.paths.state / f"{key or agent_id}.key"
        self.authorization.agents[fingerprint(ensure_key(file, agent_id))] = agent_id
        return TunnelConfig("127.0.0.1", self.port, agent_id, file, self.host_key, **settings)


def reverse_socket(hub: Hub, agent_id: str = "site-a") -> Path:
    return hub.paths.agents_dir / f"{agent_id}.sock"


async def until(condition: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """Waits for a condition; fails with its name after the deadline."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def accepting(port_of: Callable[[int], None], end: SupervisorEnd) -> AsyncIterator[None]:
    """A supervisor in small: a listener that hands everything to one gateway."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port_of(listening.getsockname()[1])

        async def accept() -> None:
            while True:
                sock, _ = await loop.sock_accept(listening)
                with sock:
                    assert end.hand_over(sock)

        tasks = [asyncio.create_task(accept()), asyncio.create_task(end.watch(lambda: None))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def running_hub(directory: Path, limits: Limits | None = None) -> AsyncIterator[Hub]:
    """A gateway in this process."""
    paths = HubPaths(private_dir(directory / "state"), private_dir(directory / "run"))
    hub = Hub(paths, FakeAuthorization(), ensure_key(paths.host_key_file, "hub"))
    ours, theirs = pair()
    hub.end = SupervisorEnd(ours)
    handover = GatewayEnd(theirs.detach())
    stopping = asyncio.Event()

    def took(port: int) -> None:
        hub.port = port

    async with hub.api, accepting(took, hub.end):
        await hub.start_api()
        gateway = asyncio.create_task(run(paths, limits or Limits(recheck_s=0.2), handover, stopping))
        try:
            yield hub
        finally:
            stopping.set()
            await gateway
            hub.end.close()
            handover.close()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def target(hub: Hub, name: str, handler: Handler) -> AsyncIterator[Path]:
    """A local service behind a logical name."""
    path = hub.paths.run / f"{name.replace('/', '-')}.sock"
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    hub.authorization.targets[name] = path
    try:
        yield path
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what it gets, then ends."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def raw_ssh(hub: Hub, config: TunnelConfig) -> asyncssh.SSHClientConnection:
    """A client that may ask for anything."""
    return await asyncssh.connect(
        "127.0.0.1",
        hub.port,
        username=config.agent_id,
        client_keys=[str(config.private_key_file)],
        known_hosts=([asyncssh.import_public_key(hub.host_key)], [], []),
        config=None,
        agent_path=None,
    )
