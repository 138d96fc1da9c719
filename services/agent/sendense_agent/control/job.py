# SPDX-License-Identifier: Apache-2.0
"""One backup: a worker on one side, now and then a stream on the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.event_log import EventLog
from sendense_agent.control.permits import Permits, WorkerPermits
from sendense_agent.control.worker_process import WorkerCommand, WorkerProcess, start_worker
from sendense_agent.domain.resuming import another_try_may_help
from sendense_agent.worker.channel import unpack
from sendense_common import telemetry
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_BEFORE_SNAPSHOT = frozenset(
    {pb.AGENT_PHASE_UNSPECIFIED, pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT},
)
# A worker that has said its last word only sends its spans; they are not worth a process that stays.
_EXIT_WITHIN_S = 30.0
# A higher attempt waits for so long until the old one's worker has left its snapshot; then it is killed.
_GIVE_WAY_WITHIN_S = 15.0


class Job:
    """One attempt; its worker runs from the start on."""

    def __init__(self, command: WorkerCommand, request: pb.RunBackupRequest, permits: Permits) -> None:
        """Starts its worker.

        Args:
            command: does so.
            request: with `start`.
            permits: of all jobs.
        """
        self.start = request.start
        self.attempt = request.start.attempt
        self.log = EventLog()
        self._request = request
        self._permits = permits
        self._worker: WorkerProcess | None = None
        self._pending: list[pb.RunBackupRequest] = []
        self._streams = 0
        self._orphaned: asyncio.TimerHandle | None = None
        self._phase: pb.AgentPhase.ValueType = pb.AGENT_PHASE_UNSPECIFIED
        self._exports_came = False
        self._committed = False
        self._ended_because: SendenseError | None = None
        self._leaves_snapshot = False
        self._telling: asyncio.Task[None] | None = None
        self._abandoning: asyncio.Task[None] | None = None
        self.snapshot_left = request.start.HasField("resume")
        """Whether its snapshot may exist, by what is known now."""
        self.running = asyncio.create_task(self._run(command))
        """Done when the worker has ended; the log has a last event then."""

    @property
    def _begun(self) -> bool:
        """Whether there are layers, of this attempt or of an earlier one, that a later one can go on with."""
        return self._exports_came or self.start.HasField("resume")

    @property
    def machine(self) -> tuple[str, str]:
        """Which VM of which vCenter."""
        return self.start.vcenter.name, self.start.vm_instance_uuid

    async def tell(self, request: pb.RunBackupRequest) -> None:
        """Passes on what the hub says; said twice, the worker takes it as once."""
        kind = request.WhichOneof("message")
        if kind == "ack":
            self.log.ack(request.ack.seq)
            return
        self._exports_came |= kind == "exports"
        self._committed |= kind == "committed"
        if kind == "cancel":
            await self._cancel(request)
        else:
            await self._pass_on(request)

    async def _cancel(self, request: pb.RunBackupRequest) -> None:
        """The first one that removes the snapshot counts; one that leaves it can be followed by another."""
        leaves = request.cancel.keep_snapshot
        if self._ended_because is None or (self._leaves_snapshot and not leaves):
            cause = request.cancel.cause or "no cause given"
            self._ended_because = SendenseError(
                Reason.REASON_CANCELLED,
                f"the backup of VM {self.start.vm_name} was cancelled: {cause}",
                retryable=False,
                vm=self.start.vm_name,
                job=self.start.job_id,
            )
            self._leaves_snapshot = leaves
        await self._pass_on(request)
        if self.running.done() and not leaves:
            self._fail(self._ended_because)  # nobody is there to remove it

    async def _pass_on(self, request: pb.RunBackupRequest) -> None:
        if self._worker is not None:
            await self._worker.send(request)
        elif not self.running.done():
            self._pending.append(request)

    async def end(self, because: SendenseError) -> None:
        """Has the worker remove what it made and say `failed`, with this reason. Waits for the worker's end.

        What is said first counts; a job whose point is complete goes on to its end.
        """
        if self._ended_because is None:
            self._ended_because = because
            await self._pass_on(pb.RunBackupRequest(cancel=pb.CancelBackup(cause=because.message)))
        await asyncio.wait({self.running})
        self._fail(self._ended_because)

    async def give_way(self, because: SendenseError) -> None:
        """Has the worker leave its snapshot to a higher attempt and end; then says `failed`.

        One that does not end soon is killed with the processes that it started: they may be stopped, or hang.
        Its vSphere session then stays until vCenter finds it idle. One that removes its snapshot already is
        let finish that.
        """
        if self._ended_because is None:
            await self._leave_snapshot(because)
        if self._leaves_snapshot:
            await asyncio.wait({self.running}, timeout=_GIVE_WAY_WITHIN_S)
            if not self.running.done() and self._worker is not None:
                log.warning("job %s: its worker does not end, and is killed", self.start.job_id)
                self._worker.kill()
        await asyncio.wait({self.running})
        self._fail(because)

    async def suspend(self, because: SendenseError) -> None:
        """Like `end`, but a job that can go on later keeps its snapshot and says `interrupted`."""
        if not self._begun or self._committed:
            await self.end(because)
            return
        if self._ended_because is None:
            await self._leave_snapshot(because)
        await asyncio.wait({self.running})

    async def _leave_snapshot(self, because: SendenseError) -> None:
        self._ended_because, self._leaves_snapshot = because, True
        cancel = pb.CancelBackup(cause=because.message, keep_snapshot=True)
        # Not waited for: one that is stopped may not take it.
        self._telling = asyncio.create_task(self._pass_on(pb.RunBackupRequest(cancel=cancel)))

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """A stream is there; without any, the job is an orphan, and `orphan_timeout` may end it."""
        self._streams += 1
        self._stop_timer()
        try:
            yield
        finally:
            self._streams -= 1
            timeout_s = self.start.orphan_timeout.ToTimedelta().total_seconds()
            if not self._streams and not self.log.ended and timeout_s:
                self._orphaned = asyncio.get_running_loop().call_later(timeout_s, self._abandon, timeout_s)

    async def follow(self, after_seq: int, attempt: int) -> AsyncGenerator[pb.RunBackupResponse, None]:
        """Events on one stream.

        Raises:
            SendenseError: ATTEMPT_FENCED, with the first event after a higher attempt has joined.
        """
        with self.followed():
            async with contextlib.aclosing(self.log.follow(after_seq)) as events:
                async for event in events:
                    if attempt < self.attempt:
                        raise fenced(self.start.job_id, attempt, self.attempt)
                    yield event

    def _abandon(self, timeout_s: float) -> None:
        log.warning("job %s had no hub for %.0f s; cleaning up", self.start.job_id, timeout_s)
        self._abandoning = asyncio.create_task(
            self.end(lost(self.start.job_id, f"it was cleaned up after {timeout_s:.0f} s without a hub"))
        )

    def _stop_timer(self) -> None:
        if self._orphaned is not None:
            self._orphaned.cancel()
            self._orphaned = None

    async def _run(self, command: WorkerCommand) -> None:
        """The worker's life; afterwards the log has a last event: `done`, `failed`, or `interrupted`."""
        failure: SendenseError | None = None
        permits: WorkerPermits | None = None
        try:
            with telemetry.continue_from(self._request.traceparent):
                async with start_worker(command, self._request) as worker:
                    self._worker = worker
                    permits = self._permits.of_worker(worker.send)
                    for request in self._pending:
                        await worker.send(request)
                    await self._hear(worker, permits)
        except SendenseError as error:
            failure = error
        except Exception:
            log.exception("job %s: its worker could not be listened to", self.start.job_id)
            failure = SendenseError(
                Reason.REASON_INTERNAL,
                "the agent's worker said something that cannot be understood",
                remedy="The log of the agent has the details; please report them.",
            )
        finally:
            self._worker = None
            self._stop_timer()
            if not self.log.ended:
                self._close(failure)
            if permits is not None:
                await permits.close()

    async def _hear(self, worker: WorkerProcess, permits: WorkerPermits) -> None:
        """Takes what the worker says, to its end; after its last event it is not waited for for ever."""
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(None) as patience,
                contextlib.aclosing(worker.messages()) as messages,
            ):
                async for wrapped in messages:
                    event = unpack(wrapped, pb.RunBackupResponse)
                    if event is None:
                        await permits.hear(wrapped)
                    elif not self.log.ended:
                        self._take(event)
                        if self.log.ended:
                            patience.reschedule(loop.time() + _EXIT_WITHIN_S)
        except TimeoutError:
            log.warning("job %s: its worker did not end by itself", self.start.job_id)

    def _take(self, event: pb.RunBackupResponse) -> None:
        match event.WhichOneof("event"):
            case "phase":
                self._phase = event.phase.phase
                self.snapshot_left = self._phase not in _BEFORE_SNAPSHOT
            case "interrupted":
                self.snapshot_left = True
                if (
                    self._ended_because is not None
                    and event.interrupted.failure.reason == Reason.REASON_CANCELLED
                ):
                    event.interrupted.failure.CopyFrom(self._ended_because.to_failure())
                log.warning("job %s is interrupted: %s", self.start.job_id, event.interrupted.failure.message)
            case "done":
                self.snapshot_left = not event.done.snapshot_removed
            case "failed":
                self.snapshot_left = event.failed.snapshot_left
                # The worker knows only that it was told to stop; why, is known here.
                if self._ended_because is not None and event.failed.failure.reason == Reason.REASON_CANCELLED:
                    event.failed.failure.CopyFrom(self._ended_because.to_failure())
                log.warning("job %s failed: %s", self.start.job_id, event.failed.failure.message)
        self.log.append(event)

    def _close(self, failure: SendenseError | None) -> None:
        """The worker is gone: says what it did not say."""
        why = self._ended_because or failure or _without_a_word()
        if not self._leaves_snapshot and (self._ended_because is not None or not self._of_use(why)):
            self._fail(why)
        elif not self.log.interrupted:
            self._say_last(interrupted=True, failure=why)

    def _of_use(self, failure: SendenseError) -> bool:
        """Whether a later attempt can go on with what there is, though the worker died."""
        return self._begun and not self._committed and another_try_may_help(failure.reason)

    def _fail(self, failure: SendenseError) -> None:
        """Ends the log, if it has not ended."""
        if not self.log.ended:
            self._say_last(interrupted=False, failure=failure)

    def _say_last(self, *, interrupted: bool, failure: SendenseError) -> None:
        failure.metadata.setdefault("vm", self.start.vm_name)
        failure.metadata.setdefault("job", self.start.job_id)
        event = pb.RunBackupResponse(traceparent=self._request.traceparent)
        if interrupted:
            event.interrupted.failure.CopyFrom(failure.to_failure())
        else:
            event.failed.failure.CopyFrom(failure.to_failure())
            event.failed.snapshot_left = self.snapshot_left
        event.time.GetCurrentTime()
        self._take(event)


def _without_a_word() -> SendenseError:
    return SendenseError(
        Reason.REASON_COPY_PROCESS_DIED,
        "the agent's worker ended without a word",
        remedy="The agent's log has its last words.",
    )


def fenced(job_id: str, attempt: int, higher: int) -> SendenseError:
    """ATTEMPT_FENCED."""
    return SendenseError(
        Reason.REASON_ATTEMPT_FENCED,
        f"attempt {attempt} of job {job_id} may do nothing any more: attempt {higher} is here",
        retryable=False,
        job=job_id,
    )


def lost(job_id: str, why: str) -> SendenseError:
    """JOB_LOST."""
    return SendenseError(
        Reason.REASON_JOB_LOST,
        f"the agent does not have job {job_id} any more: {why}",
        remedy="Start the backup again.",
        job=job_id,
    )
