# SPDX-License-Identifier: Apache-2.0
"""The life of a job from its turn to its end: every way out of it leads to an ended job."""

from __future__ import annotations

import asyncio
import logging

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
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)


class Runner:
    """Runs jobs."""

    def __init__(self, workshop: Workshop, sweeper: SnapshotSweeper) -> None:
        self._workshop = workshop
        self._sweeper = sweeper

    async def run(self, job_id: str) -> None:
        """Runs a job whose turn it is; returns when it has ended, however. An ended job is left alone."""
        catalog = self._workshop.catalog
        parent = await catalog.run(lambda connection: jobs.traceparent(connection, job_id))
        job = await catalog.run(lambda connection: jobs.get(connection, job_id))
        if job.state in job_rules.ENDED:
            return
        with self._workshop.board.run(job) as live, telemetry.continue_from(parent):
            try:
                await live.change(job_changes.start)
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
        except SendenseError as error:
            failure = error
        except Exception as error:
            log.exception("defect in job %s", live.job.job_id)
            failure = SendenseError(
                Reason.REASON_INTERNAL,
                f"the hub failed unexpectedly: {type(error).__name__}",
                remedy="The log of the hub has the details; please report them.",
            )
        left = ""
        if attempt is not None:
            await asyncio.shield(attempt.clean_up())
            if attempt.snapshot_maybe_left:
                left = await self._sweep(live)
        if attempt is not None and attempt.committed:
            if failure is not None:
                await live.change(job_changes.warn("ended_early", failure.message))
            failure = None
        if left:
            await live.change(job_changes.warn("snapshot_left", left))
        await live.change(_ending(failure))
        return failure

    async def _sweep(self, live: LiveJob) -> str:
        """Removes the job's snapshot, now or later; what to tell about it."""
        job = live.job
        pending = PendingCleanup(job.job_id, job.vcenter_name, job.vm_instance_uuid, job.vm_name)
        await self._workshop.catalog.run(lambda connection: cleanups.add(connection, pending))
        try:
            await self._sweeper.sweep(pending)
        except SendenseError as error:
            return f"A snapshot of this job may be left; its removal will be tried again: {error.message}"
        return ""


def _ending(failure: SendenseError | None) -> Change:
    def change(job: pb.Job) -> None:
        if failure is None:
            end(job, pb.JOB_STATE_SUCCEEDED)
        elif failure.reason == Reason.REASON_CANCELLED:
            end(job, pb.JOB_STATE_CANCELLED, failure)
        else:
            failure.metadata.setdefault("vm", job.vm_name)
            failure.metadata.setdefault("vcenter", job.vcenter_name)
            end(job, pb.JOB_STATE_FAILED, failure)

    return change
