# SPDX-License-Identifier: Apache-2.0
"""The points that a backup builds on: the newest complete one of each disk, if its chain is whole.

Looked up by VM, disk and repository; nobody deletes them while they are held.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.point_health import DAMAGED, remember_damage
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository.committed_ledgers import check_ledgers
from sendense_hub.repository.point_writer import check_chain

Previous = dict[int, tuple[point_service_pb2.RestorePoint, point_service_pb2.PointDisk]]
"""By device key: the point, and the disk in it."""

PREVIOUS_DAMAGED, CHAIN_TOO_LONG = "previous_damaged", "chain_too_long"


FullBecause = dict[int, str]
"""By device key: why a disk that has a complete point is a full all the same; see JobDisk.mode_reason."""

_INCREMENTAL_REMEDY = "With --mode auto that disk is copied in full, the others are not."


@contextlib.asynccontextmanager
async def held(
    workshop: Workshop, live: LiveJob, vcenter_uuid: str
) -> AsyncIterator[tuple[Previous, FullBecause]]:
    """What the job may build on while the block runs; nothing for a full.

    Raises:
        SendenseError: POINT_BUSY when one of them is being deleted; INCREMENTAL_NOT_POSSIBLE when nothing but
            an incremental was wanted, and a disk of the newest point cannot be built upon.
    """
    job = live.job
    if job.mode == pb.BACKUP_MODE_FULL:
        yield {}, {}
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
        yield found, await _drop_unusable(workshop, live, found)


def told(previous: Previous) -> list[agent.PreviousDisk]:
    """What the agent has to know of them."""
    return [
        agent.PreviousDisk(
            key=disk.key,
            disk_object_id=disk.disk_object_id,
            backing_uuid=disk.backing_uuid,
            capacity_bytes=disk.capacity_bytes,
            change_id=disk.change_id,
        )
        for _, disk in previous.values()
    ]


def explain(plan: agent.BackupPlan, because: FullBecause) -> None:
    """The agent knows nothing of points that cannot be built upon, and takes the copy for the first."""
    for disk in plan.disks:
        if disk.mode == agent.DISK_MODE_FULL:
            disk.mode_reason = because.get(disk.key, disk.mode_reason)


async def _drop_unusable(workshop: Workshop, live: LiveJob, found: Previous) -> FullBecause:
    """A damaged or too long chain is not built upon: such a disk is copied in full, and the job says why."""
    because: FullBecause = {}
    newest = max((point.complete_time.ToMicroseconds() for point, _ in found.values()), default=0)
    for key, (point, disk) in list(found.items()):
        trouble = await _trouble(workshop, point, disk)
        if trouble is None:
            continue
        because[key], words = trouble
        del found[key]
        named = f"disk {key} ({disk.label})"
        in_newest = point.complete_time.ToMicroseconds() == newest  # else the VM may have it no more
        if live.job.mode == pb.BACKUP_MODE_INCREMENTAL and in_newest:
            raise SendenseError(
                Reason.REASON_INCREMENTAL_NOT_POSSIBLE,
                f"{named} cannot be built on its last point, {point.point_id}: {words}",
                remedy=_INCREMENTAL_REMEDY,
                disk=key,
                point=point.point_id,
                cause=because[key],
            )
        if because[key] == PREVIOUS_DAMAGED:
            warning = f"{named} is not built on point {point.point_id}: {words}"
            if not any(each.message == warning for each in live.job.warnings):  # of an earlier attempt
                await live.change(job_changes.warn("chain_unusable", warning, key))
    return because


async def _trouble(
    workshop: Workshop, point: point_service_pb2.RestorePoint, disk: point_service_pb2.PointDisk
) -> tuple[str, str] | None:
    """Why a disk's chain is not built upon, for programs and for people; None: it can be."""
    if disk.HasField("damage"):
        return PREVIOUS_DAMAGED, disk.damage.message
    repository = workshop.repository(point.repository_name)
    try:
        document = await asyncio.to_thread(repository.read_document, point.directory)
        chain = await asyncio.to_thread(repository.chain, document, disk.key)
        if len(chain) >= workshop.longest_chain:
            return CHAIN_TOO_LONG, f"its chain has {len(chain)} layers, and may have {workshop.longest_chain}"
        await check_chain(repository, chain, disk.key)
        await asyncio.to_thread(check_ledgers, repository, chain, disk.key)
    except SendenseError as error:
        if error.reason not in DAMAGED:
            raise
        await remember_damage(workshop, point, error)
        return PREVIOUS_DAMAGED, error.message
    return None
