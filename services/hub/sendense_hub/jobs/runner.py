# SPDX-License-Identifier: Apache-2.0
"""The life of a job from its turn to its end: every way out of it leads to an ended job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, jobs
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.domain import job_rules
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.backup import BackupAttempt
from sendense_hub.jobs.board import Change, LiveJob, end
from sendense_hub.jobs.cancellation import uncancelled
from sendense_hub.jobs.new_point import NewPoint
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

T = TypeVar("T")

_AGAIN_AFTER_S = 2.0


class Runner:
    """Runs jobs."""

    def __init__(self, workshop: Workshop, sweeper: SnapshotSweeper) -> None:
        self._workshop = workshop
        self._sweeper = sweeper

    async def run(self, job_id: str) -> None:
        """Runs a job whose turn it is; returns when it has ended, however. An ended job is left alone."""

        def read(connection: sa.Connection) -> tuple[pb.Job, str]:
            return jobs.get(connection, job_id), jobs.traceparent(connection, job_id)

        job, parent = await _persistently(lambda: self._workshop.catalog.run(read))
        if job.state in job_rules.ENDED:
            return
        with self._workshop.board.run(job) as live, telemetry.continue_from(parent):
            try:
                await _persistently(lambda: live.change(job_changes.start))
            except SendenseError:
                return  # cancelled before its turn
            with telemetry.span(f"backup of {job.vm_name}", job=job_id, attempt=live.job.attempt) as span:
                failure = await self._attempt(live)
                if failure is not None:
                    span.record_exception(failure)
        log.info("job %s of VM %s ended: %s", job_id, job.vm_name, failure or "succeeded")

    async def _attempt(self, live: LiveJob) -> SendenseError | None:
        """One attempt and the end of the job; why it failed."""
        attempt: BackupAttempt | None = None
        failure: SendenseError | None = None
        try:
            attempt = BackupAttempt(self._workshop, live)
            await attempt.run()
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            failure = _ours(error, live)
        committed = attempt is not None and attempt.point.committed
        warnings: list[Change] = []
        if attempt is not None:
            warnings += await self._clean_up(live, attempt)
            if committed:
                warnings += await self._recorded(live, attempt.point)
            warnings += await self._sweep(live, attempt)
        if committed and failure is not None:
            warnings.append(job_changes.warn("ended_early", failure.message))
            failure = None
        point_id = attempt.point.point_id if attempt is not None and committed else ""
        await _persistently(lambda: live.change(_ending(failure, point_id, warnings)))
        return failure

    async def _clean_up(self, live: LiveJob, attempt: BackupAttempt) -> list[Change]:
        """Nothing is left of a point that is not complete; or what to tell about it."""
        try:
            await asyncio.shield(attempt.clean_up())
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            left = _ours(error, live)
            words = f"Files of this job are left; the next start of the hub removes them: {left.message}"
            return [job_changes.warn("files_left", words)]
        return []

    async def _recorded(self, live: LiveJob, point: NewPoint) -> list[Change]:
        """The catalog knows the complete point."""
        try:
            await _persistently(point.record)
        except Exception as error:  # noqa: BLE001 - logged by `_ours`
            why = _ours(error, live)
            words = f"The point is complete; it will be listed after the next start of the hub: {why.message}"
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
