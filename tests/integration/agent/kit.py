# SPDX-License-Identifier: Apache-2.0
"""An agent's gRPC service whose workers are real processes that the test plays, and a hub to talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub, add_AgentServiceServicer_to_server
from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense_agent.control.jobs import Jobs
from sendense_agent.control.reconciliation import Reconciliation
from sendense_agent.control.worker_process import WorkerCommand
from sendense_agent.datapath import framing
from sendense_agent.domain.limits import Limits
from sendense_agent.rpc.agent_service import AgentService
from sendense_agent.worker.channel import unpack
from sendense_common import process, protocol, rpc
from sendense_common.paths import AgentPaths

WITHIN_S = 20.0
LIMITS = Limits()

_PUPPET = """
import os, socket, sys, threading

sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendall(b"%d\\n" % os.getpid())

def outward():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)

threading.Thread(target=outward, daemon=True).start()
while data := sock.recv(65536):
    view = memoryview(data)
    while view:
        view = view[os.write(1, view):]
os._exit(0)
"""


class Puppet:
    """A worker process: what it is told comes here, what is said here it says."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self._reader = reader
        self._writer = writer

    async def hear_any(self) -> AnyMessage | None:
        """The next message; None when its standard input was closed."""
        async with asyncio.timeout(WITHIN_S):
            return await framing.read(self._reader, AnyMessage)

    async def hear(self, kind: str) -> pb.RunBackupRequest:
        """The next message of the hub, which must be of this kind."""
        wrapped = await self.hear_any()
        assert wrapped is not None
        request = unpack(wrapped, pb.RunBackupRequest)
        assert request is not None
        assert request.WhichOneof("message") == kind
        return request

    async def say(self, **event: Any) -> None:
        await self.say_message(pb.RunBackupResponse(**event))

    async def say_message(self, message: Message) -> None:
        wrapped = AnyMessage()
        wrapped.Pack(message)
        await self.say_bytes(framing.frame(wrapped))

    async def say_bytes(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def enter(self, *phases: pb.AgentPhase.ValueType) -> None:
        for phase in phases:
            await self.say(phase=pb.PhaseStarted(phase=phase))

    async def fail_as_cancelled(self, *, snapshot_left: bool = False) -> None:
        """What a worker does when it is told to cancel."""
        failure = {"reason": "REASON_CANCELLED", "message": "told to"}
        await self.say(failed=pb.BackupFailed(failure=failure, snapshot_left=snapshot_left))  # type: ignore[arg-type]
        self.end()

    def end(self) -> None:
        """It ends with exit code 0."""
        self._writer.close()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    async def wait_gone(self) -> None:
        """Returns when the process is gone, waited for by its parent."""
        await until(lambda: not Path(f"/proc/{self.pid}").exists(), "the worker is gone", WITHIN_S)


class Puppets:
    """Workers as they are started."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "puppet.py"
        self._program.write_text(_PUPPET)
        self._socket = directory / "puppet.sock"
        self._started: asyncio.Queue[Puppet] = asyncio.Queue()
        self.started_count = 0

    def command(self, traceparent: str) -> list[str]:
        """See `WorkerCommand`."""
        program = [sys.executable, "-I", "-S", str(self._program), str(self._socket)]
        return process.dying_with_parent(program)

    async def next(self) -> Puppet:
        async with asyncio.timeout(WITHIN_S):
            return await self._started.get()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        writers = []

        async def started(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            self.started_count += 1
            self._started.put_nowait(Puppet(int(await reader.readline()), reader, writer))

        server = await asyncio.start_unix_server(started, str(self._socket))
        try:
            yield
        finally:
            server.close()
            for writer in writers:
                writer.close()
            await asyncio.sleep(0)


class Agent:
    """The service, its jobs and workers."""

    def __init__(self, directory: Path, command: WorkerCommand | None, limits: Limits) -> None:
        self.directory = directory
        self.socket = directory / "grpc.sock"
        self.puppets = Puppets(directory)
        self.paths = AgentPaths(directory, directory)
        self._command = command or self.puppets.command
        self.jobs = Jobs(self._command, limits)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Its service, until the block ends."""
        service = rpc.Service(
            "sendense.agent.v1.AgentService",
            add_AgentServiceServicer_to_server,
            AgentService("site-a", self._command, self.jobs, Reconciliation(self.paths)),
        )
        async with rpc.serve(self.socket, [service], stop_grace_s=0.2):
            yield

    @contextlib.asynccontextmanager
    async def stub(self, socket: Path | None = None) -> AsyncIterator[AgentServiceStub]:
        async with rpc.connect(socket or self.socket) as channel:
            yield AgentServiceStub(channel)


@contextlib.asynccontextmanager
async def running_agent(
    directory: Path, command: WorkerCommand | None = None, limits: Limits = LIMITS
) -> AsyncIterator[Agent]:
    """With workers of the test's, or others."""
    agent = Agent(directory, command, limits)
    async with agent.puppets.listening():
        try:
            async with agent.serving():
                yield agent
        finally:
            for running in [job.running for job in agent.jobs._jobs.values()]:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


def start(job_id: str | None = None, **changes: Any) -> pb.BackupStart:
    """A `start` in order."""
    values: dict[str, Any] = {
        "job_id": job_id or str(uuid.uuid4()),
        "attempt": 1,
        "hub_id": "hub-1",
        "vcenter": VcenterAccess(name="vc1", host="127.0.0.1", port=443, ca_pem="x", lease_id="l"),
        "vm_instance_uuid": "50000000-0000-0000-0000-000000000001",
        "vm_name": "web",
        "quiesce": pb.QUIESCE_MODE_OFF,
        "orphan_timeout": Duration(seconds=600),
        "protocol": protocol.HERE.newest,
    }
    values.update(changes)
    return pb.BackupStart(**values)


Hearing = Callable[[pb.RunBackupResponse], Awaitable[None]]


class Stream:
    """The hub's end of one RunBackup."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def tell(self, **message: Any) -> None:
        await self._call.write(pb.RunBackupRequest(**message))

    async def event(self) -> pb.RunBackupResponse:
        """The next event; AioRpcError when the stream ends badly."""
        async with asyncio.timeout(WITHIN_S):
            event = await self._call.read()
        assert isinstance(event, pb.RunBackupResponse), "the stream ended"
        return event

    async def events(self, count: int) -> list[pb.RunBackupResponse]:
        return [await self.event() for _ in range(count)]

    async def rest(self, heard: Hearing | None = None) -> list[pb.RunBackupResponse]:
        """All events to the end of the stream, which must end well."""
        events = []
        async with asyncio.timeout(WITHIN_S):
            while isinstance(event := await self._call.read(), pb.RunBackupResponse):
                events.append(event)
                if heard is not None:
                    await heard(event)
            assert await self._call.code() == grpc.StatusCode.OK
        return events

    async def last(self) -> pb.RunBackupResponse:
        return (await self.rest())[-1]

    async def status(self) -> grpc.StatusCode:
        """How it ends, without an event before."""
        async with asyncio.timeout(WITHIN_S):
            return await self._call.code()  # type: ignore[no-any-return]

    def cut(self) -> None:
        self._call.cancel()


async def open_stream(stub: AgentServiceStub, begin: pb.BackupStart | None) -> Stream:
    stream = Stream(stub.RunBackup())
    if begin is not None:
        await stream.tell(start=begin)
    return stream
