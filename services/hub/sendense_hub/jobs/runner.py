# SPDX-License-Identifier: Apache-2.0
"""The life of a job from its turn to its end: every way out leads to an ended job, or to one that waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1.point_service_pb2 import RestorePoint
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, job_plans, jobs, points
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.catalog.job_plans import JobPlan
from sendense_hub.domain import job_rules, resuming, times
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.backup import BackupAttempt
from sendense_hub.jobs.board import Change, LiveJob, cancelled, end
from sendense_hub.jobs.cancellation import uncancelled
from sendense_hub.jobs.new_point import NewPoint
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

T = TypeVar("T")

_AGAIN_AFTER_S = 2.0


class Runner:
    """Runs jobs, an attempt at a time."""

    def __init__(self, workshop: Workshop, sweeper: SnapshotSweeper, patience: Patience) -> None:
        """Args: patience: with what interrupts jobs."""
        self._workshop = workshop
        self._sweeper = sweeper
        self._patience = patience

    async def run(self, job_id: str) -> None:
        """Makes one attempt at a job whose turn it is; returns when the job has ended, or waits for the next.

        A job that was cancelled while it waited is ended. One that runs or has ended is left alone.
        """

        def read(connection: sa.Connection) -> tuple[pb.Job, str]:
            return jobs.get(connection, job_id), jobs.traceparent(connection, job_id)

        while not await self._had_its_turn(*await _persistently(lambda: self._workshop.catalog.run(read))):
            log.info("job %s was cancelled when its turn came", job_id)

    async def _had_its_turn(self, job: pb.Job, parent: str) -> bool:
        """False: it is not as it was read any more, and nothing was done."""
        job_id = job.job_id
        if job.state in job_rules.ENDED or self._workshop.board.runs(job_id):
            return True
        with self._workshop.board.run(job) as live, telemetry.continue_from(parent):
            if job.state != pb.JOB_STATE_CANCELLING and not await _persistently(
                lambda: live.begin(job_changes.start)
            ):
                return False
            attempt = live.job.attempt
            with (
                telemetry.in_attempt(attempt),
                telemetry.span(f"backup of {job.vm_name}", job=job_id),
            ):
                failure = await self._attempt(live)
                if failure is not None:
                    telemetry.refused(failure)
        state = pb.JobState.Name(live.job.state).removeprefix("JOB_STATE_").lower()
        log.info("job %s of VM %s is %s: %s", job_id, job.vm_name, state, failure or "its point is complete")
        return True

    async def _attempt(self, live: LiveJob) -> SendenseError | None:
        """One attempt, and the end of the job or the wait for the next; why it failed."""

        def read(connection: sa.Connection) -> tuple[RestorePoint | None, JobPlan | None]:
            job_id = live.job.job_id
            return points.of_job(connection, job_id), job_plans.get(connection, job_id)

        attempt: BackupAttempt | None = None
        failure: SendenseError | None = None
        try:
            earlier, kept = await _persistently(lambda: self._workshop.catalog.run(read))
            attempt = BackupAttempt(self._workshop, live, earlier, kept)
            if live.job.state == pb.JOB_STATE_CANCELLING and live.stop_cause is None:
                await _adopt(attempt.point)
                raise cancelled(live.job.job_id)
            await attempt.run()
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            failure = _ours(error, live)
        if failure is not None and attempt is not None:
            if not attempt.point.committed and await self._interrupted(live, attempt, failure):
                return failure
            await attempt.dismiss(failure)
        return await self._end(live, attempt, failure)

    async def _interrupted(self, live: LiveJob, attempt: BackupAttempt, failure: SendenseError) -> bool:
        """Whether the job goes on later; then nothing works on it any more, and it waits."""
        planned, first = attempt.point.kept is not None, live.job.attempt <= 1
        if not resuming.may_go_on(failure.reason, planned=planned, first=first):
            return False
        recopied = attempt.recopied_bytes()
        interruption = pb.JobInterruption(
            attempt=live.job.attempt,
            failure=failure.to_failure(),
            phase=live.job.phase,
            recopied_bytes=sum(recopied.values()),
        )
        interruption.time.GetCurrentTime()
        change = job_changes.interrupt(
            interruption,
            got_further=attempt.got_further,
            recopied=recopied,
            next_try_us=lambda all_of_it: resuming.next_try_us(all_of_it, self._patience, times.now_us()),
        )
        try:
            # Gone first: who reads that it waits may take the disk under the repository away.
            await asyncio.shield(attempt.suspend())
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            _ours(error, live)
            return False
        await _persistently(lambda: live.change(change))
        return live.job.state == pb.JOB_STATE_WAITING

    async def _end(
        self, live: LiveJob, attempt: BackupAttempt | None, failure: SendenseError | None
    ) -> SendenseError | None:
        """The job is over, and nothing of it is left but a complete point; why it failed."""
        committed = False
        warnings: list[Change] = []
        if attempt is not None:
            warnings += await self._clean_up(live, attempt)
            committed = attempt.point.committed
            if committed:
                warnings += await self._recorded(live, attempt.point)
            warnings += await self._sweep(live, attempt)
        if committed and failure is not None and failure.reason != Reason.REASON_POINT_CORRUPT:
            warnings.append(job_changes.warn("ended_early", failure.message))
            failure = None
        point_id = attempt.point.point_id if attempt is not None and committed else ""
        await _persistently(lambda: live.change(_ending(failure, point_id, warnings)))
        job_id = live.job.job_id
        await _persistently(
            lambda: self._workshop.catalog.run(lambda connection: job_plans.forget(connection, job_id))
        )
        return failure

    async def _clean_up(self, live: LiveJob, attempt: BackupAttempt) -> list[Change]:
        """Nothing is left of a point that is not complete; or what to tell about it."""
        try:
            await asyncio.shield(attempt.clean_up())
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            left = _ours(error, live)
            words = f"Files of this job are left; the hub removes them in a few minutes: {left.message}"
            return [job_changes.warn("files_left", words)]
        return []

    async def _recorded(self, live: LiveJob, point: NewPoint) -> list[Change]:
        """The catalog knows the complete point."""
        try:
            await _persistently(point.record)
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            why = _ours(error, live)
            words = f"The point is complete; it will be listed in a few minutes: {why.message}"
            return [job_changes.warn("point_not_listed", words)]
        return []

    async def _sweep(self, live: LiveJob, attempt: BackupAttempt) -> list[Change]:
        """The job's snapshot is removed, now or later; what to tell about it."""
        if not attempt.snapshot_maybe_left:
            return []
        job = live.job
        pending = PendingCleanup(job.job_id, job.vcenter_name, job.vm_instance_uuid, job.vm_name)
        try:
            await _persistently(
                lambda: self._workshop.catalog.run(lambda connection: cleanups.add(connection, pending))
            )
            if live.stop_cause is not None and live.stop_cause.reason == Reason.REASON_SERVICE_STOPPING:
                raise live.stop_cause  # there is no time for it now
            await uncancelled(self._sweeper.sweep(pending))
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            why = _ours(error, live)
            words = f"A snapshot of this job may be left; its removal will be tried again: {why.message}"
            return [job_changes.warn("snapshot_left", words)]
        return []


async def _persistently(write: Callable[[], Awaitable[T]]) -> T:
    """Does it again for as long as the catalog cannot be used: else a job would be left without an end."""
    while True:
        try:
            return await write()
        except SendenseError as error:
            if error.reason != Reason.REASON_SERVICE_UNAVAILABLE:
                raise
            log.error("a job waits for the catalog: %s", error)
        await asyncio.sleep(_AGAIN_AFTER_S)


async def _adopt(point: NewPoint) -> None:
    """A cancel comes too late for a point that is complete, also when a killed hub did not say so."""
    try:
        await point.adopt()
    except SendenseError as error:
        log.warning("whether point %s is complete cannot be seen now: %s", point.point_id, error)


def _ours(error: Exception, live: LiveJob) -> SendenseError:
    """Any exception as one of ours."""
    if isinstance(error, SendenseError):
        return error
    log.error("defect in job %s", live.job.job_id, exc_info=error)
    return SendenseError(
        Reason.REASON_INTERNAL,
        f"the hub failed unexpectedly: {type(error).__name__}",
        remedy="The log of the hub has the details; please report them.",
    )


def _ending(failure: SendenseError | None, point_id: str, warnings: list[Change]) -> Change:
    def change(job: pb.Job) -> None:
        for warn in warnings:
            warn(job)
        if point_id:
            job.point_id = point_id
        if failure is None:
            end(job, pb.JOB_STATE_SUCCEEDED)
        elif failure.reason == Reason.REASON_CANCELLED:
            end(job, pb.JOB_STATE_CANCELLED, failure)
        else:
            failure.metadata.setdefault("vm", job.vm_name)
            failure.metadata.setdefault("vcenter", job.vcenter_name)
            end(job, pb.JOB_STATE_FAILED, failure)

    return change
