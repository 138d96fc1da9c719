# SPDX-License-Identifier: Apache-2.0
"""What a restarted hub makes of the jobs that ran: each is ended, truthfully, before anything starts.

A complete point is never thrown away: where the repository cannot be looked at, or is not mounted, the row of
the point stays, and the next start looks again.
"""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense.hub.v1.point_service_pb2 import RestorePoint
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, jobs, points
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.jobs import job_changes, point_record
from sendense_hub.jobs.board import end
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import delete_point

log = logging.getLogger(__name__)

_INTERRUPTED = (pb.JOB_STATE_RUNNING, pb.JOB_STATE_CANCELLING)
_MANY = 10_000


async def recover(workshop: Workshop) -> None:
    """Ends what the last life of this hub left running, and finishes deletions that it began.

    A job whose point has its commit mark has succeeded; any other has failed, and nothing of it is kept.
    Their snapshots are left to the sweeper.
    """
    catalog = workshop.catalog
    for job in await catalog.run(lambda c: jobs.listed(c, states=_INTERRUPTED, limit=_MANY)):
        point = await catalog.run(lambda c, job_id=job.job_id: points.of_job(c, job_id))  # type: ignore[misc]
        row, trouble = (await _settle(workshop, point)) if point else (None, None)
        await _end(workshop, job, row, trouble)
    # Of jobs that ended while their repository could not be used.
    writing = point_service_pb2.POINT_STATE_WRITING
    for point in await catalog.run(lambda c: points.listed(c, state=writing, limit=_MANY)):
        row, _ = await _settle(workshop, point)
        if row is not None:
            await catalog.run(lambda c, row=row: points.complete(c, row))  # type: ignore[misc]
            log.warning("point %s of job %s is complete after all", row.point_id, row.job_id)
    deleting = point_service_pb2.POINT_STATE_DELETING
    for point in await catalog.run(lambda c: points.listed(c, state=deleting, limit=_MANY)):
        try:
            await _remove(workshop, point)
        except SendenseError as error:
            log.error("point %s cannot be deleted: %s", point.point_id, error)


async def _settle(
    workshop: Workshop, point: RestorePoint
) -> tuple[RestorePoint | None, SendenseError | None]:
    """A point that was being written: itself if it is complete; else it is removed, or trouble is told."""
    try:
        repository = workshop.repository(point.repository_name)
        await asyncio.to_thread(repository.space)  # an empty mount point must not look like a half point
        try:
            document = await asyncio.to_thread(repository.read_document, point.directory)
        except SendenseError as error:
            if error.reason != Reason.REASON_POINT_INCOMPLETE:
                raise
            await _remove(workshop, point)
            return None, None
        row = await asyncio.to_thread(
            point_record.message,
            document,
            point.repository_name,
            point.directory,
            repository.point_path(point.directory),
        )
    except SendenseError as error:
        log.error("point %s of job %s cannot be looked at: %s", point.point_id, point.job_id, error)
        return None, error
    return row, None


async def _remove(workshop: Workshop, point: RestorePoint) -> None:
    await delete_point(workshop.repository(point.repository_name), point.directory)
    await workshop.catalog.run(lambda connection: points.forget(connection, point.point_id))


async def _end(
    workshop: Workshop,
    job: pb.Job,
    row: RestorePoint | None,
    trouble: SendenseError | None,
) -> None:
    kept = "Nothing of it was kept." if trouble is None else f"What there is of it stays: {trouble.message}."
    restarted = SendenseError(
        Reason.REASON_HUB_RESTARTED,
        f"the hub was restarted while job {job.job_id} of VM {job.vm_name} ran",
        remedy=f"{kept} Start the backup again.",
        retryable=True,
        vm=job.vm_name,
        vcenter=job.vcenter_name,
    )
    if row is not None:
        job.point_id = row.point_id
        job_changes.warn("hub_restarted", "The hub was restarted just after the point was complete.")(job)
        end(job, pb.JOB_STATE_SUCCEEDED)
    elif job.state == pb.JOB_STATE_CANCELLING:
        end(job, pb.JOB_STATE_CANCELLED, restarted)
    else:
        end(job, pb.JOB_STATE_FAILED, restarted)
    pending = PendingCleanup(job.job_id, job.vcenter_name, job.vm_instance_uuid, job.vm_name)

    def write(connection: sa.Connection) -> None:
        if row is not None:
            points.complete(connection, row)
        jobs.write(connection, job)
        cleanups.add(connection, pending)

    await workshop.catalog.run(write)
    log.warning("job %s ended by the restart of the hub", job.job_id)
