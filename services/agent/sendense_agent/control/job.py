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
from sendense_agent.worker.channel import unpack
from sendense_common import telemetry
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_BEFORE_SNAPSHOT = frozenset(
    {pb.AGENT_PHASE_UNSPECIFIED, pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT},
)
# A worker that has said its last word only sends its spans; they are not worth a process that stays.
_EXIT_WITHIN_S = 30.0


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
        self._ended_because: SendenseError | None = None
        self._abandoning: asyncio.Task[None] | None = None
        self.snapshot_left = False
        """Whether its snapshot may exist, by what is known now."""
        self.running = asyncio.create_task(self._run(command))
        """Done when the worker has ended; the log has a last event then."""

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
        if kind == "cancel" and self._ended_because is None:
            cause = request.cancel.cause or "no cause given"
            self._ended_because = SendenseError(
                Reason.REASON_CANCELLED,
                f"the backup of VM {self.start.vm_name} was cancelled: {cause}",
                retryable=False,
                vm=self.start.vm_name,
                job=self.start.job_id,
            )
        if self._worker is not None:
            await self._worker.send(request)
        else:
            self._pending.append(request)

    async def end(self, because: SendenseError) -> None:
        """Has the worker remove what it made and say `failed`, with this reason. Waits for the worker's end.

        What is said first counts; a job whose point is complete goes on to its end.
        """
        if self._ended_because is None:
            self._ended_because = because
            await self.tell(pb.RunBackupRequest(cancel=pb.CancelBackup(cause=because.message)))
        await asyncio.wait({self.running})

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """A stream is there; without any, the job is an orphan and ends itself after a while."""
        self._streams += 1
        self._stop_timer()
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams and not self.log.ended:
                timeout_s = self.start.orphan_timeout.ToTimedelta().total_seconds()
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
        """The worker's life; whatever becomes of it, the log ends with `done` or `failed`."""
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
                self._fail(self._ended_because or failure)
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
            case "done":
                self.snapshot_left = not event.done.snapshot_removed
            case "failed":
                self.snapshot_left = event.failed.snapshot_left
                # The worker knows only that it was told to stop; why, is known here.
                if self._ended_because is not None and event.failed.failure.reason == Reason.REASON_CANCELLED:
                    event.failed.failure.CopyFrom(self._ended_because.to_failure())
                log.warning("job %s failed: %s", self.start.job_id, event.failed.failure.message)
        self.log.append(event)

    def _fail(self, failure: SendenseError | None) -> None:
        failure = failure or SendenseError(
            Reason.REASON_COPY_PROCESS_DIED,
            "the agent's worker ended without a word",
            remedy="The agent's log has its last words. Start the backup again.",
        )
        failure.metadata.setdefault("vm", self.start.vm_name)
        failure.metadata.setdefault("job", self.start.job_id)
        failed = pb.BackupFailed(failure=failure.to_failure(), snapshot_left=self.snapshot_left)
        event = pb.RunBackupResponse(failed=failed, traceparent=self._request.traceparent)
        event.time.GetCurrentTime()
        self._take(event)


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
