# SPDX-License-Identifier: Apache-2.0
"""What a restarted hub makes of the jobs that ran: each is ended, truthfully, before anything starts."""

from __future__ import annotations

import asyncio
import logging

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, jobs, points
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.jobs import job_changes, point_record
from sendense_hub.jobs.board import end
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import PointDocument, delete_point

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
        try:
            document = await _committed(workshop, point) if point else None
            if point and not document:
                await _remove(workshop, point)
        except SendenseError as error:
            log.error("job %s cannot be cleaned up: %s", job.job_id, error)
            document = None
        await _end(workshop, job, point, document)
    deleting = point_service_pb2.POINT_STATE_DELETING
    for point in await catalog.run(lambda c: points.listed(c, state=deleting, limit=_MANY)):
        try:
            await _remove(workshop, point)
        except SendenseError as error:
            log.error("point %s cannot be deleted: %s", point.point_id, error)


async def _committed(workshop: Workshop, point: point_service_pb2.RestorePoint) -> PointDocument | None:
    repository = workshop.repository(point.repository_name)
    try:
        return await asyncio.to_thread(repository.read_document, point.directory)
    except SendenseError as error:
        if error.reason == Reason.REASON_POINT_INCOMPLETE:
            return None
        raise


async def _remove(workshop: Workshop, point: point_service_pb2.RestorePoint) -> None:
    await delete_point(workshop.repository(point.repository_name), point.directory)
    await workshop.catalog.run(lambda connection: points.forget(connection, point.point_id))


async def _end(
    workshop: Workshop,
    job: pb.Job,
    point: point_service_pb2.RestorePoint | None,
    document: PointDocument | None,
) -> None:
    restarted = SendenseError(
        Reason.REASON_HUB_RESTARTED,
        f"the hub was restarted while job {job.job_id} of VM {job.vm_name} ran",
        remedy="Nothing of it was kept. Start the backup again.",
        retryable=True,
        vm=job.vm_name,
        vcenter=job.vcenter_name,
    )
    row = None
    if point is not None and document is not None:
        repository = workshop.repository(point.repository_name)
        row = await asyncio.to_thread(
            point_record.message,
            document,
            point.repository_name,
            point.directory,
            repository.point_path(point.directory),
        )
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
