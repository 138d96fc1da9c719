# SPDX-License-Identifier: Apache-2.0
"""The points that a backup builds on: the newest complete one of each disk, if its chain is whole.

Looked up by VM, disk and repository; nobody deletes them while they are held.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import Repository
from sendense_hub.repository.point_writer import check_chain

Previous = dict[int, tuple[point_service_pb2.RestorePoint, point_service_pb2.PointDisk]]
"""By device key: the point, and the disk in it."""

_DAMAGED = frozenset({Reason.REASON_POINT_CORRUPT, Reason.REASON_POINT_INCOMPLETE})


@contextlib.asynccontextmanager
async def held(workshop: Workshop, live: LiveJob, vcenter_uuid: str) -> AsyncIterator[Previous]:
    """What the job may build on while the block runs; nothing for a full.

    Raises:
        SendenseError: POINT_BUSY when one of them is being deleted.
    """
    job = live.job
    if job.mode == pb.BACKUP_MODE_FULL:
        yield {}
        return
    found = await workshop.catalog.run(
        lambda connection: points.newest_disks(
            connection,
            vcenter_uuid,
            job.vm_instance_uuid,
            job.repository_name,
            vcenter_name=job.vcenter_name,
        )
    )
    # From here on none of them can go, also not while their headers are looked at.
    with workshop.locks.reading(point.point_id for point, _ in found.values()):
        await _drop_unusable(workshop.repository(job.repository_name), live, found)
        yield found


async def _drop_unusable(repository: Repository, live: LiveJob, found: Previous) -> None:
    """A damaged chain is not built upon: such a disk is copied in full, and the job says why."""
    for key, (point, _) in list(found.items()):
        try:
            document = await asyncio.to_thread(repository.read_document, point.directory)
            chain = await asyncio.to_thread(repository.chain, document, key)
            await check_chain(repository, chain, key)
        except SendenseError as error:
            if error.reason not in _DAMAGED:
                raise
            del found[key]
            await live.change(job_changes.warn("chain_unusable", error.message, key))
