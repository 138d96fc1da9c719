# SPDX-License-Identifier: Apache-2.0
"""Whether what vSphere says about changed blocks is believed, per disk: what ended that, what restored it.

Who is trusted follows from the events. A disk begins trusted; a mismatch ends it, an operator's word or a
tracking that began anew restores it. In each repository its next point must be one for which everything was
read: what was left out before is in no list of changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from sendense.hub.v1.point_service_pb2 import POINT_STATE_COMPLETE
from sendense_hub.catalog.schema import job_disks, jobs, point_disks, restore_points, trust_events
from sendense_hub.domain.times import now_us

MISMATCH, ACCEPTED, TRACKING_RESET = "mismatch", "accepted", "tracking_reset"
READ_WHOLE, RESET_ORDERED = "read_whole", "reset_ordered"
_RESTORING = {ACCEPTED, TRACKING_RESET}


@dataclass(frozen=True)
class Machine:
    """A VM, as its vCenter's instance UUID and its own."""

    vcenter_uuid: str
    instance_uuid: str


@dataclass(frozen=True)
class Event:
    """Something that ended trust in a disk's tracking, or restored it, or is part of that."""

    kind: str
    disk_key: int
    message: str = ""
    job_id: str = ""
    repository_name: str = ""
    """In which everything was read ("read_whole")."""
    change_id: str = ""
    """Of the tracking that left something out ("mismatch")."""
    time_us: int = 0
    """0: now. Of "read_whole": when its point became complete, later than any older point of the VM."""


@dataclass(frozen=True)
class AuditRow:
    """What one job audited of one disk."""

    job_id: str
    time_us: int
    disk_key: int
    label: str
    audited_bytes: int
    mismatches: int


def add(connection: sa.Connection, machine: Machine, event: Event) -> None:
    """One more."""
    connection.execute(
        trust_events.insert().values(
            vcenter_uuid=machine.vcenter_uuid,
            vm_instance_uuid=machine.instance_uuid,
            disk_key=event.disk_key,
            time_us=event.time_us or now_us(),
            kind=event.kind,
            job_id=event.job_id,
            repository_name=event.repository_name,
            change_id=event.change_id,
            message=event.message,
        )
    )


def events(connection: sa.Connection, machine: Machine) -> list[Event]:
    """Of all its disks, oldest first."""
    columns = trust_events.c
    query = (
        sa.select(trust_events)
        .where(
            columns.vcenter_uuid == machine.vcenter_uuid,
            columns.vm_instance_uuid == machine.instance_uuid,
        )
        .order_by(columns.number)
    )
    return [
        Event(
            kind=row.kind,
            disk_key=row.disk_key,
            message=row.message,
            job_id=row.job_id,
            repository_name=row.repository_name,
            change_id=row.change_id,
            time_us=row.time_us,
        )
        for row in connection.execute(query)
    ]


def mistrusted(happened: Sequence[Event]) -> dict[int, Event]:
    """By device key: the mismatch that ended the trust of each disk that is not trusted now."""
    found: dict[int, Event] = {}
    for event in happened:
        if event.kind == MISMATCH:
            found[event.disk_key] = event
        elif event.kind in _RESTORING:
            found.pop(event.disk_key, None)
    return found


def newest_us(
    connection: sa.Connection,
    machine: Machine,
    *,
    vcenter_name: str,
    repository_name: str,
    but_of_job: str = "",
) -> dict[int, int]:
    """By device key: when the newest point that holds the disk became complete, in microseconds.

    Args:
        connection: in a transaction.
        machine: the VM.
        vcenter_name: what an operator calls its vCenter.
        repository_name: only points there count.
        but_of_job: the point of this job does not count.
    """
    columns = restore_points.c
    query = (
        sa.select(point_disks.c.key, sa.func.max(columns.complete_time_us).label("moment_us"))
        .join(restore_points, columns.point_id == point_disks.c.point_id)
        .where(
            columns.vcenter_name == vcenter_name,
            columns.vcenter_uuid == machine.vcenter_uuid,
            columns.vm_instance_uuid == machine.instance_uuid,
            columns.repository_name == repository_name,
            columns.state == POINT_STATE_COMPLETE,
            columns.job_id != but_of_job,
        )
        .group_by(point_disks.c.key)
    )
    return {row.key: row.moment_us for row in connection.execute(query)}


def to_read_whole(happened: Sequence[Event], repository_name: str, newest: Mapping[int, int]) -> set[int]:
    """Disks of which the next backup in a repository reads everything.

    Those that are not trusted, and those of whose newest mismatch no point there knows: none did yet, or the
    point for which everything was read was deleted, and what there is to build upon is older.

    Args:
        happened: all events of the VM.
        repository_name: which.
        newest: see `newest_us`.
    """
    found: set[int] = set()
    for event in happened:
        if event.kind == MISMATCH:
            found.add(event.disk_key)
        elif (
            event.kind == READ_WHOLE
            and event.repository_name == repository_name
            and newest.get(event.disk_key, 0) >= event.time_us
        ):
            found.discard(event.disk_key)
    return found | set(mistrusted(happened))


def never_read_whole(happened: Sequence[Event]) -> set[int]:
    """Disks that were not read whole for any point since their newest mismatch."""
    found: set[int] = set()
    for event in happened:
        if event.kind == MISMATCH:
            found.add(event.disk_key)
        elif event.kind == READ_WHOLE:
            found.discard(event.disk_key)
    return found


def since(happened: Sequence[Event]) -> dict[int, int]:
    """By device key: when trust last ended or was restored."""
    turning = {MISMATCH, *_RESTORING}
    return {event.disk_key: event.time_us for event in happened if event.kind in turning}


def audits(connection: sa.Connection, vcenter_name: str, vm_instance_uuid: str) -> list[AuditRow]:
    """What was audited of a VM, newest first."""
    query = (
        sa.select(jobs.c.job_id, jobs.c.start_time_us, job_disks)
        .join(job_disks, job_disks.c.job_id == jobs.c.job_id)
        .where(
            jobs.c.vcenter_name == vcenter_name,
            jobs.c.vm_instance_uuid == vm_instance_uuid,
            job_disks.c.audited_bytes > 0,
        )
        .order_by(jobs.c.create_time_us.desc(), job_disks.c.key)
    )
    return [
        AuditRow(
            row.job_id, row.start_time_us or 0, row.key, row.label, row.audited_bytes, row.audit_mismatches
        )
        for row in connection.execute(query)
    ]
