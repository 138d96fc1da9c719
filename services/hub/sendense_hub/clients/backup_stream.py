# SPDX-License-Identifier: Apache-2.0
"""RunBackup with one agent: a conversation that survives its transport."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator

import grpc

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.common.v1.reason_pb2 import Reason
from sendense_common import rpc, telemetry
from sendense_common.errors import SendenseError
from sendense_hub.clients.sites import Sites

log = logging.getLogger(__name__)

_PAUSE_S = 0.5
# Keepalive finds a dead peer within 30 s: a stream that lasted longer had an agent at its other end.
_PROVED_ALIVE_S = 45.0
# A stream that says nothing for so long is opened anew. Its agent may have nothing to say; but on a host
# without time for it, gRPC (1.85) was seen to keep messages back for good, on a connection that was alive.
_QUIET_S = 30.0
# Of what the agent itself says, only these are about its state. Any other is about the request: asking again
# cannot help.
_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# Of what gRPC says (it calls a broken connection also INTERNAL or UNKNOWN), these are about the request.
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

_LAST = frozenset({"done", "failed"})
# Said anew, an earlier one means nothing any more: an agent logs in once at a time, and keeps one limit.
_NEWEST = frozenset({"lease", "limit"})
_HANG_UP_WITHIN_S = 2.0

_Stream = grpc.aio.StreamStreamCall[pb.RunBackupRequest, pb.RunBackupResponse]


class _Outbox:
    """What goes out, until None.

    Of acknowledgements, the newest says all: an agent that reads none of them fills no memory here.
    """

    def __init__(self) -> None:
        self._waiting: deque[pb.RunBackupRequest | None] = deque()
        self._news = asyncio.Event()

    def put(self, request: pb.RunBackupRequest | None) -> None:
        """One more, the last."""
        last = self._waiting[-1] if self._waiting else None
        if request is not None and last is not None and request.HasField("ack") and last.HasField("ack"):
            self._waiting.pop()
        self._waiting.append(request)
        self._news.set()

    async def get(self) -> pb.RunBackupRequest | None:
        """The first."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()


class BackupStream:
    """Events of one attempt at the agent; rejoins by itself when the connection breaks.

    What was said is said again after a rejoin (exports, commit, cancel): the agent takes repetitions as one.
    """

    def __init__(self, sites: Sites, site: str, start: pb.BackupStart, *, give_up_after_s: float) -> None:
        """Args: give_up_after_s: without any answer; the agent cleans up by itself about then."""
        self._sites = sites
        self._site = site
        self._start = start
        self._give_up_after_s = give_up_after_s
        self._said: list[pb.RunBackupRequest] = []
        self._outbox: _Outbox | None = None
        self._was_quiet = False
        self.begun = False
        """Whether the agent may have heard of the job."""

    async def events(self) -> AsyncGenerator[pb.RunBackupResponse, None]:
        """All events until `done` or `failed`, each numbered one once and in order.

        Raises:
            SendenseError: the agent refused, left out an event, or cannot be reached for `give_up_after_s`:
                TUNNEL_LOST.
        """
        loop = asyncio.get_running_loop()
        heard_at = loop.time()
        while True:
            opened_at = loop.time()
            try:
                async with contextlib.aclosing(self._one_stream()) as stream:
                    async for event in stream:
                        heard_at = loop.time()
                        if event.seq:
                            if event.seq <= self._start.after_seq:
                                continue
                            self._check_next(event)
                            self._start.after_seq = event.seq
                        yield event
                        if event.WhichOneof("event") in _LAST:
                            return
                why = "the agent ended the stream"
            except grpc.aio.AioRpcError as error:
                mine = SendenseError.from_rpc(error, doing=f"backup through site {self._site!r}")
                by_grpc = "grpc_code" in mine.metadata
                if error.code() in _FINAL if by_grpc else error.code() not in _AGAIN:
                    raise mine from error
                why = mine.message
            except SendenseError as error:
                if error.reason != Reason.REASON_SITE_OFFLINE or not self.begun:
                    raise
                why = error.message
            if self._was_quiet or loop.time() - opened_at > _PROVED_ALIVE_S:
                heard_at = loop.time()  # it was there, and had nothing to say
            if self._was_quiet:
                log.info("job %s: nothing was heard for %g s; joining it anew", self._start.job_id, _QUIET_S)
                continue
            if loop.time() - heard_at > self._give_up_after_s:
                raise SendenseError(
                    Reason.REASON_TUNNEL_LOST,
                    f"the agent of site {self._site!r} could not be reached for "
                    f"{self._give_up_after_s:.0f} s: {why}",
                    remedy="Check the site's network and the agent's log; then start the backup again.",
                    site=self._site,
                )
            log.warning("job %s: the stream broke (%s); joining it again", self._start.job_id, why)
            await asyncio.sleep(_PAUSE_S)

    async def say(self, request: pb.RunBackupRequest) -> None:
        """Tells the agent, now and after every rejoin."""
        request.traceparent = telemetry.traceparent()
        kind = request.WhichOneof("message")
        if kind in _NEWEST:
            self._said = [each for each in self._said if each.WhichOneof("message") != kind]
        self._said.append(request)
        self._send(request)

    async def ack(self, seq: int) -> None:
        """Events up to `seq` are stored here."""
        self._send(pb.RunBackupRequest(ack=pb.AckEvents(seq=seq)))

    def _send(self, request: pb.RunBackupRequest) -> None:
        """A stream that broke is noticed where it is read; what was said is repeated on the next one."""
        if self._outbox is not None:
            self._outbox.put(request)

    def _check_next(self, event: pb.RunBackupResponse) -> None:
        """An event that was lost may be a checkpoint: without it there is no truth about the point."""
        if event.seq != self._start.after_seq + 1:
            raise SendenseError(
                Reason.REASON_INTERNAL,
                f"the agent's event {event.seq} came after event {self._start.after_seq}: some are missing",
                site=self._site,
            )

    async def _one_stream(self) -> AsyncGenerator[pb.RunBackupResponse, None]:
        outbox, self._was_quiet = _Outbox(), False
        async with rpc.connect(self._sites.socket(self._site)) as channel:
            stub = AgentServiceStub(channel)
            # At each stream: the agent may have been upgraded meanwhile.
            try:
                self._start.protocol = await self._sites.agree(self._site, stub)
            except asyncio.CancelledError:
                if _ours():
                    raise
                return  # the call was cancelled below us: as for a stream, see `_read`
            outbox.put(pb.RunBackupRequest(start=self._start, traceparent=telemetry.traceparent()))
            for request in self._said:
                outbox.put(request)
            self._outbox, self.begun = outbox, True
            stream = stub.RunBackup(_sent(outbox))
            ended = False
            try:
                while (event := await self._next(stream)) is not None:
                    ended = event.WhichOneof("event") in _LAST
                    yield event
            finally:
                self._outbox = None
                outbox.put(None)
                if ended:
                    await _hang_up(stream)
                stream.cancel()

    async def _next(self, stream: _Stream) -> pb.RunBackupResponse | None:
        """The next event; None at the end, also when it is not worth while to wait for one."""

        def give_up() -> None:
            self._was_quiet = True
            stream.cancel()

        quiet = asyncio.get_running_loop().call_later(_QUIET_S, give_up)
        try:
            return await _read(stream)
        finally:
            quiet.cancel()


async def _sent(outbox: _Outbox) -> AsyncIterator[pb.RunBackupRequest]:
    """What goes out, to the None.

    gRPC's own `write` cannot be used: it leaves a task behind on each stream that breaks, and its failure
    takes the place of the stream's status.
    """
    while (request := await outbox.get()) is not None:
        yield request


async def _hang_up(stream: _Stream) -> None:
    """Lets the last acknowledgement arrive: the agent keeps its last words until then."""

    async def drain() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, SendenseError):
            while await _read(stream) is not None:
                pass

    # Not `asyncio.timeout`: this may be the clean-up of a cancelled task (see `process.stop`).
    draining = asyncio.create_task(drain())
    try:
        await asyncio.wait({draining}, timeout=_HANG_UP_WITHIN_S)
    finally:
        draining.cancel()


async def _read(stream: _Stream) -> pb.RunBackupResponse | None:
    """The next event; None at the end.

    A stream that was cancelled below us raises CancelledError here. It must not look like a cancellation of
    our own task: the engine would leave the job without a runner.
    """
    try:
        event = await stream.read()
    except asyncio.CancelledError:
        if _ours():
            raise
        return None
    return event if isinstance(event, pb.RunBackupResponse) else None


def _ours() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
