# SPDX-License-Identifier: Apache-2.0
"""The backups that have a worker here: started once, joined as often as streams break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterator

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.event_log import EventLog
from sendense_agent.control.worker_process import WorkerProcess, start_worker
from sendense_agent.worker.channel import unpack
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths

log = logging.getLogger(__name__)

# What an ended job has to say is kept so long for a hub that was away.
_KEEP_ENDED_S = 3600.0


class Job:
    """One backup."""

    def __init__(self, paths: AgentPaths, request: pb.RunBackupRequest) -> None:
        self.start = request.start
        self.attempt = request.start.attempt
        self.log = EventLog()
        self._paths = paths
        self._request = request
        self._worker: WorkerProcess | None = None
        self._pending: list[pb.RunBackupRequest] = []
        self._streams = 0
        self._orphaned: asyncio.TimerHandle | None = None
        self.running = asyncio.create_task(self._run())

    async def tell(self, request: pb.RunBackupRequest) -> None:
        """Passes on what the hub says."""
        if request.WhichOneof("message") == "ack":
            self.log.ack(request.ack.seq)
        elif self._worker is not None:
            await self._worker.send(request)
        else:
            self._pending.append(request)

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """A stream is there; without any, the job is an orphan and ends itself after a while."""
        self._streams += 1
        if self._orphaned is not None:
            self._orphaned.cancel()
            self._orphaned = None
        try:
            yield
        finally:
            self._streams -= 1
            if not self._streams and not self.log.ended:
                timeout_s = max(1.0, self.start.orphan_timeout.ToTimedelta().total_seconds())
                self._orphaned = asyncio.get_running_loop().call_later(timeout_s, self._abandon, timeout_s)

    def stop(self) -> None:
        """Asks the worker to clean up and end."""
        if self._orphaned is not None:
            self._orphaned.cancel()
        if self._worker is not None:
            self._worker.terminate()

    def _abandon(self, timeout_s: float) -> None:
        log.warning("job %s had no hub for %.0f s; cleaning up", self.start.job_id, timeout_s)
        self.stop()

    async def _run(self) -> None:
        """The worker's life; whatever becomes of it, the log ends with `done` or `failed`."""
        failure: SendenseError | None = None
        try:
            with telemetry.continue_from(self._request.traceparent):
                async with start_worker(self._paths, self._request) as worker:
                    self._worker = worker
                    for request in self._pending:
                        await worker.send(request)
                    async with contextlib.aclosing(worker.messages()) as messages:
                        async for wrapped in messages:
                            event = unpack(wrapped, pb.RunBackupResponse)
                            if event is not None:
                                self.log.append(event)
        except SendenseError as error:
            failure = error
        except OSError as error:
            failure = SendenseError(Reason.REASON_INTERNAL, f"a worker could not be started: {error}")
        finally:
            self._worker = None
            if not self.log.ended:
                failure = failure or SendenseError(
                    Reason.REASON_COPY_PROCESS_DIED,
                    f"the worker of job {self.start.job_id} ended without a word",
                    remedy="The agent's log has its last words. Start the backup again.",
                )
                failed = pb.BackupFailed(failure=failure.to_failure(), snapshot_left=True)
                self.log.append(pb.RunBackupResponse(failed=failed))


class Jobs:
    """All backups of this agent."""

    def __init__(self, paths: AgentPaths) -> None:
        self._paths = paths
        self._jobs: dict[str, Job] = {}

    def ids(self) -> list[str]:
        """Of those that run."""
        return sorted(job_id for job_id, job in self._jobs.items() if not job.log.ended)

    def start_or_join(self, request: pb.RunBackupRequest) -> Job:
        """The job of a `start` message.

        Raises:
            SendenseError: ATTEMPT_FENCED, JOB_LOST, VM_BUSY.
        """
        start = request.start
        job = self._jobs.get(start.job_id)
        if job is not None and start.attempt < job.attempt:
            raise SendenseError(
                Reason.REASON_ATTEMPT_FENCED,
                f"attempt {job.attempt} of job {start.job_id} is here: {start.attempt} may do nothing",
                job=start.job_id,
            )
        if job is not None and start.attempt == job.attempt and job.log.knows_after(start.after_seq):
            return job
        if start.after_seq > 0 or (job is not None and not job.log.ended):
            raise SendenseError(
                Reason.REASON_JOB_LOST,
                f"this agent no longer has attempt {start.attempt} of job {start.job_id}",
                job=start.job_id,
            )
        for other in self._jobs.values():
            if other.start.vm_instance_uuid == start.vm_instance_uuid and not other.log.ended:
                raise SendenseError(
                    Reason.REASON_VM_BUSY,
                    f"job {other.start.job_id} of VM {start.vm_name} still runs at this site",
                    retryable=True,
                    job=other.start.job_id,
                )
        job = Job(self._paths, request)
        self._jobs[start.job_id] = job
        job.running.add_done_callback(lambda _: self._forget_later(start.job_id, job))
        return job

    async def follow(self, job: Job, after_seq: int) -> AsyncGenerator[pb.RunBackupResponse, None]:
        """Events of a job on one stream."""
        with job.followed():
            async with contextlib.aclosing(job.log.follow(after_seq)) as events:
                async for event in events:
                    yield event

    async def stop(self) -> None:
        """Ends all: each removes its snapshot first."""
        for job in self._jobs.values():
            job.stop()
        await asyncio.gather(*(job.running for job in self._jobs.values()), return_exceptions=True)

    async def drained(self) -> None:
        """Returns when the hub knows how all of them ended."""
        for job in self._jobs.values():
            await job.log.wait_drained()

    def _forget_later(self, job_id: str, job: Job) -> None:
        def forget() -> None:
            if self._jobs.get(job_id) is job:
                del self._jobs[job_id]

        with contextlib.suppress(RuntimeError):  # the loop is closing
            asyncio.get_running_loop().call_later(_KEEP_ENDED_S, forget)
