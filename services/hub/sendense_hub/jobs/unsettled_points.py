# SPDX-License-Identifier: Apache-2.0
"""Points that are neither complete nor gone, and that no job goes on with: each is completed or removed.

Their jobs have ended while the repository or the catalog could not be used, or with a hub that was killed. A
complete point is never thrown away: where the repository cannot be looked at, or is not mounted, the row of
the point stays, and the next round looks again.
"""

from __future__ import annotations

import asyncio

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2 as pb
from sendense.hub.v1.point_service_pb2 import RestorePoint
from sendense_common.acts import Act, Outcome
from sendense_common.errors import SendenseError
from sendense_hub.catalog import jobs, points
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.jobs import point_record
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import delete_point
from sendense_hub.repository.verification import check_committed

_MANY = 10_000
_ANEW = "It is looked at again in the next round."


async def finish(workshop: Workshop) -> list[Act]:
    """Completes or removes all of them that nobody uses at this moment."""
    acts = []
    for point in await workshop.catalog.run(_unsettled):
        try:
            with workshop.locks.deleting(point.point_id):
                acts += await _finish(workshop, point.point_id)
        except SendenseError as error:
            if error.reason != Reason.REASON_POINT_BUSY:  # a delete, or a scan, that goes on meanwhile
                acts.append(_failed(point, error))
    return acts


async def look(workshop: Workshop, point: RestorePoint) -> RestorePoint | None:
    """The row of a point that has its commit mark; None when it has none.

    Raises:
        SendenseError: it cannot be told: nothing may be concluded then. POINT_CORRUPT: it lacks what belongs
            to it, as after a power cut under a disk that promised too much.
    """
    repository = workshop.repository(point.repository_name)
    await asyncio.to_thread(repository.space)  # an empty mount point must not look like a half point
    try:
        document = await asyncio.to_thread(repository.settled_document, point.directory)
    except SendenseError as error:
        if error.reason != Reason.REASON_POINT_INCOMPLETE:
            raise
        return None
    await check_committed(repository, document)
    return await asyncio.to_thread(
        point_record.message,
        document,
        point.repository_name,
        point.directory,
        repository.point_path(point.directory),
    )


async def remove(workshop: Workshop, point: RestorePoint) -> None:
    """Its files, then its row."""
    await delete_point(workshop.repository(point.repository_name), point.directory)
    await workshop.catalog.run(lambda connection: points.forget(connection, point.point_id))


def _unsettled(connection: sa.Connection) -> list[RestorePoint]:
    """In one transaction with the jobs: what has ended has ended for good."""
    deleting = points.listed(connection, state=pb.POINT_STATE_DELETING, limit=_MANY)
    writing = points.listed(connection, state=pb.POINT_STATE_WRITING, limit=_MANY)
    active = {job.job_id for job in jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY)}
    return [*deleting, *(point for point in writing if point.job_id not in active)]


async def _finish(workshop: Workshop, point_id: str) -> list[Act]:
    """Of a point that is locked: it may have been deleted until it was."""
    known = await workshop.catalog.run(lambda connection: points.with_ids(connection, [point_id]))
    point = known.get(point_id)
    if point is None or point.state == pb.POINT_STATE_COMPLETE:
        return []
    if point.state == pb.POINT_STATE_DELETING:
        await remove(workshop, point)
        return [Act("deletion", _where(point), "its deletion was not finished")]
    row = await look(workshop, point)
    if row is None:
        await remove(workshop, point)
        return [Act("half_point", _where(point), f"job {point.job_id} has ended without completing it")]
    await workshop.catalog.run(lambda connection: points.complete(connection, row))
    return [Act("commit", _where(point), f"it has its commit mark, and job {point.job_id} has ended")]


def _where(point: RestorePoint) -> str:
    return f"point {point.point_id} of VM {point.vm_name}"


def _failed(point: RestorePoint, error: SendenseError) -> Act:
    what = "deletion" if point.state == pb.POINT_STATE_DELETING else "half_point"
    return Act(what, _where(point), error.message, Outcome.FAILED, error.remedy or _ANEW)
