# SPDX-License-Identifier: Apache-2.0
"""All backups of this agent: who may start or join one, and what becomes of those that nobody listens to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.backup_job import BackupJob, Seat
from sendense_agent.control.fence import Fence, fenced
from sendense_agent.control.worker_process import WorkerCommand
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_ORPHAN_TIMEOUT_S = 120.0
_STOP_WITHIN_S = 20.0


@dataclass(frozen=True)
class Joined:
    """A stream's place at a job."""

    job: BackupJob
    seat: Seat


class Backups:
    """The table of jobs; made by `open_backups`."""

    def __init__(self, command: WorkerCommand) -> None:
        self._command = command
        self._jobs: dict[str, BackupJob] = {}
        self._fence = Fence()
        self._running: dict[BackupJob, asyncio.Task[None]] = {}
        self._orphan_timers: dict[BackupJob, asyncio.TimerHandle] = {}
        self._stopping = False

    @property
    def job_ids(self) -> list[str]:
        """Jobs that have a worker here."""
        return sorted(job.job_id for job in self._running)

    async def join(self, start: pb.BackupStart, traceparent: str) -> Joined | pb.RunBackupResponse:
        """Starts a job or joins it.

        Returns:
            The stream's place, or the one event that it gets when the job is not here any more: `failed`
            with JOB_LOST.

        Raises:
            SendenseError: ATTEMPT_FENCED, VM_BUSY, SERVICE_STOPPING.
        """
        while True:
            known = start.attempt <= self._fence.highest(start.job_id)
            self._fence.pass_through(start.job_id, start.attempt)
            job = self._jobs.get(start.job_id)
            if job is None:
                break
            if start.attempt > job.attempt and start.after_seq == 0:
                await self._end(job, fenced(job.job_id, job.attempt, f"attempt {start.attempt} started"))
                self._forget(job)
                continue
            if job.log.can_continue_after(start.after_seq):
                job.attempt = max(job.attempt, start.attempt)
                return self._seated(job, start.after_seq)
            # The hub does not know what it once stored, or has heard the end already.
            await self._end(job, _lost(start.job_id, "the hub asks for events that it has acknowledged"))
            self._forget(job)
            known = True
        if start.after_seq > 0 or known:
            return self._lost_event(start)
        await self.end_all((each.job_id for each in start.dead_snapshots), "the hub says that it has ended")
        # Nothing is awaited from here on: two starts at the same moment cannot both find the VM free.
        self._refuse_if_busy(start)
        job = BackupJob(start, traceparent)
        self._jobs[start.job_id] = job
        self._running[job] = asyncio.create_task(self._live(job))
        return self._seated(job, 0)

    def leave(self, joined: Joined) -> None:
        """A stream is gone; may be said twice. From now on the job's time alone counts."""
        if joined.job.stand_up(joined.seat) and joined.job in self._jobs.values():
            if joined.job.log.finished:
                self._forget(joined.job)
            else:
                self._start_timer(joined.job)

    async def end_all(self, job_ids: Iterable[str], why: str) -> None:
        """Ends those of the jobs that have a worker here, and waits until their workers are gone."""
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and job in self._running:
                await self._end(job, SendenseError(Reason.REASON_CANCELLED, why, job=job_id))

    async def stop(self) -> None:
        """Ends all jobs, each with its clean-up, within `_STOP_WITHIN_S` seconds."""
        self._stopping = True
        for job in self._running:
            job.end(
                SendenseError(
                    Reason.REASON_SERVICE_STOPPING,
                    f"the agent was stopped while VM {job.start.vm_name} was backed up",
                    remedy="Start the backup again when the agent runs.",
                    vm=job.start.vm_name,
                    job=job.job_id,
                )
            )
        tasks = list(self._running.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_STOP_WITHIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for timer in self._orphan_timers.values():
            timer.cancel()

    def _refuse_if_busy(self, start: pb.BackupStart) -> None:
        if self._stopping:
            raise SendenseError(
                Reason.REASON_SERVICE_STOPPING, "the agent is being stopped", remedy="Try again when it runs."
            )
        for other in self._running:
            if other.machine == (start.vcenter.name, start.vm_instance_uuid):
                raise SendenseError(
                    Reason.REASON_VM_BUSY,
                    f"VM {start.vm_name} is being backed up by job {other.job_id}",
                    remedy="Wait for that job, or cancel it.",
                    vm=start.vm_name,
                    job=other.job_id,
                )

    def _seated(self, job: BackupJob, after_seq: int) -> Joined:
        self._stop_timer(job)
        return Joined(job, job.sit_down(after_seq))

    def _lost_event(self, start: pb.BackupStart) -> pb.RunBackupResponse:
        failed = pb.BackupFailed(
            failure=_lost(
                start.job_id, "it was restarted, or cleaned up after a time without a hub"
            ).to_failure(),
            snapshot_left=self._fence.snapshot_left(start.job_id),
        )
        event = pb.RunBackupResponse(seq=start.after_seq + 1, failed=failed)
        event.time.GetCurrentTime()
        return event

    async def _live(self, job: BackupJob) -> None:
        try:
            await job.run(self._command)
        finally:
            del self._running[job]
            self._fence.ended(job.job_id, snapshot_left=job.snapshot_left)

    async def _end(self, job: BackupJob, because: SendenseError) -> None:
        job.end(because)
        await job.gone.wait()

    def _forget(self, job: BackupJob) -> None:
        self._stop_timer(job)
        if self._jobs.get(job.job_id) is job:
            del self._jobs[job.job_id]

    def _start_timer(self, job: BackupJob) -> None:
        timeout_s = job.start.orphan_timeout.ToTimedelta().total_seconds() or _ORPHAN_TIMEOUT_S
        self._stop_timer(job)
        self._orphan_timers[job] = asyncio.get_running_loop().call_later(timeout_s, self._orphaned, job)

    def _stop_timer(self, job: BackupJob) -> None:
        timer = self._orphan_timers.pop(job, None)
        if timer is not None:
            timer.cancel()

    def _orphaned(self, job: BackupJob) -> None:
        """Nobody listened for too long: an ended job is forgotten, a running one is ended first."""
        if job.log.last_event is not None:
            self._forget(job)
            return
        log.warning("job %s: no hub for too long; cleaning up", job.job_id)
        job.end(_lost(job.job_id, "it was cleaned up, for no hub was there for too long"))
        self._start_timer(job)


def _lost(job_id: str, why: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_JOB_LOST,
        f"the agent does not have job {job_id} any more: {why}",
        remedy="Start the backup again.",
        job=job_id,
    )


@contextlib.asynccontextmanager
async def open_backups(command: WorkerCommand) -> AsyncIterator[Backups]:
    """An empty table; the jobs that run at the end of the block are ended."""
    backups = Backups(command)
    try:
        yield backups
    finally:
        await backups.stop()
