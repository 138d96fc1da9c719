# SPDX-License-Identifier: Apache-2.0
"""The backups of this agent: started once, joined as often as streams break, ended in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.job import Job, fenced, lost
from sendense_agent.control.permits import Permits
from sendense_agent.control.worker_process import WorkerCommand
from sendense_agent.domain.limits import Limits
from sendense_common import audit_log
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

# An ended job is kept so long: its last words for a hub that was away, its attempt as a fence.
_KEEP_ENDED_S = 3600.0
# Removing a snapshot can take hours; vSphere goes on with it, and the hub has the rest cleaned up later.
_STOP_WITHIN_S = 20.0


class Jobs:
    """All backups of this agent."""

    def __init__(self, command: WorkerCommand, limits: Limits) -> None:
        """No jobs yet.

        Args:
            command: starts a worker.
            limits: over all jobs.
        """
        self._command = command
        self.permits = Permits(limits)
        self._jobs: dict[str, Job] = {}
        self._stopping = False

    def ids(self) -> list[str]:
        """Of those that run."""
        return sorted(job_id for job_id, job in self._jobs.items() if not job.log.ended)

    async def start_or_join(self, request: pb.RunBackupRequest) -> Job | pb.BackupFailed:
        """The job of a `start` message; or, when it is not here any more, what the hub is told (JOB_LOST).

        Raises:
            SendenseError: ATTEMPT_FENCED, VM_BUSY, SERVICE_STOPPING.
        """
        start = request.start
        await self.end_all((each.job_id for each in start.dead_snapshots), "the hub says that it is over")
        # What follows an await below is looked at anew, so that two starts cannot both find a place free.
        while (job := self._jobs.get(start.job_id)) is not None:
            if start.attempt < job.attempt:
                raise fenced(start.job_id, start.attempt, job.attempt)
            if start.attempt > job.attempt and start.after_seq == 0:
                superseded = fenced(start.job_id, job.attempt, start.attempt)
                await (job.give_way if start.HasField("resume") else job.end)(superseded)
                if self._jobs.get(start.job_id) is job:
                    del self._jobs[start.job_id]
                continue
            job.attempt = start.attempt
            if job.log.continues_after(start.after_seq):
                return job
            error = lost(start.job_id, "the hub has heard its end, or asks again for what it has stored")
            await job.end(error)
            return pb.BackupFailed(failure=error.to_failure(), snapshot_left=job.snapshot_left)
        if start.after_seq > 0:
            error = lost(start.job_id, "the agent was restarted, or the job ended long ago")
            return pb.BackupFailed(failure=error.to_failure(), snapshot_left=True)
        job = self._start(request)
        await audit_log.record(
            "backup.run",
            subject=start.job_id,
            actor=audit_log.system_actor(),
            attempt=start.attempt,
            vm=start.vm_name,
            vcenter=start.vcenter.name,
        )
        return job

    def _start(self, request: pb.RunBackupRequest) -> Job:
        start = request.start
        if self._stopping:
            raise SendenseError(
                Reason.REASON_SERVICE_STOPPING, "the agent is being stopped", remedy="Try again when it runs."
            )
        job_id = start.job_id
        for other in self._jobs.values():
            if not (other.log.ended or other.running.done()) and other.machine == (
                start.vcenter.name,
                start.vm_instance_uuid,
            ):
                raise SendenseError(
                    Reason.REASON_VM_BUSY,
                    f"job {other.start.job_id} of VM {start.vm_name} still runs at this site",
                    remedy="Wait for it, or cancel it.",
                    retryable=True,
                    vm=start.vm_name,
                    job=other.start.job_id,
                )
        job = self._jobs[job_id] = Job(self._command, request, self.permits)
        job.running.add_done_callback(lambda _: self._forget_later(job_id, job))
        return job

    async def end_all(self, job_ids: Iterable[str], why: str) -> None:
        """Ends those of the jobs that run here, with their clean-up; returns when their workers are gone."""
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and not job.log.ended:
                await job.end(SendenseError(Reason.REASON_CANCELLED, why, job=job_id))

    async def stop(self) -> None:
        """Ends all within 20 s: those that can go on later leave their snapshot, the others clean up."""
        self._stopping = True
        running = [job.running for job in self._jobs.values() if not job.running.done()]
        ending = [asyncio.create_task(job.suspend(_stopped(job))) for job in self._jobs.values()]
        if ending:
            await asyncio.wait(ending, timeout=_STOP_WITHIN_S)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *ending, return_exceptions=True)

    async def drained(self) -> None:
        """Returns when the hub knows how all of them ended."""
        for job in list(self._jobs.values()):
            await job.log.wait_drained()

    def _forget_later(self, job_id: str, job: Job) -> None:
        def forget() -> None:
            if self._jobs.get(job_id) is job:
                del self._jobs[job_id]

        with contextlib.suppress(RuntimeError):  # the loop is closing
            asyncio.get_running_loop().call_later(_KEEP_ENDED_S, forget)


def _stopped(job: Job) -> SendenseError:
    return SendenseError(
        Reason.REASON_SERVICE_STOPPING,
        f"the agent was stopped while VM {job.start.vm_name} was backed up",
        remedy="Start the agent.",
        vm=job.start.vm_name,
        job=job.start.job_id,
    )
