# SPDX-License-Identifier: Apache-2.0
"""Restore points and their disks, read and written as the contract's RestorePoint message."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import verifications
from sendense_hub.catalog.jobs import named, too_short
from sendense_hub.catalog.schema import jobs, point_disks, restore_points, virtual_machines
from sendense_hub.domain.times import to_timestamp, to_us


@dataclass(frozen=True)
class Summary:
    """Of the complete points in one repository."""

    points_count: int
    chains_count: int
    """Disks that are built on nothing."""
    machines_count: int
    stored_bytes: int
    newest_us: int | None


# The rest of the columns is `verifications`' own.
_DISK_FIELDS = [
    column.name for column in point_disks.c if not column.name.startswith(("point_id", "verify_", "damage"))
]


def begin(connection: sa.Connection, point: pb.RestorePoint) -> None:
    """A job starts to write it, or goes on; nobody can restore it yet, nor delete what it is built on."""
    point.state = pb.POINT_STATE_WRITING
    forget(connection, point.point_id)
    connection.execute(restore_points.insert().values(**_columns(point)))
    _insert_disks(connection, point)


def complete(connection: sa.Connection, point: pb.RestorePoint) -> None:
    """Its commit mark is set: it counts from now on, and so do its change IDs. Twice is once."""
    point.state = pb.POINT_STATE_COMPLETE
    connection.execute(restore_points.delete().where(restore_points.c.point_id == point.point_id))
    connection.execute(restore_points.insert().values(**_columns(point)))
    _insert_disks(connection, point)


def _insert_disks(connection: sa.Connection, point: pb.RestorePoint) -> None:
    rows = [{name: getattr(disk, name) for name in _DISK_FIELDS} for disk in point.disks]
    if rows:
        connection.execute(point_disks.insert().values(point_id=point.point_id), rows)


def set_deleting(connection: sa.Connection, point_id: str) -> None:
    """Its files go."""
    connection.execute(
        restore_points.update()
        .where(restore_points.c.point_id == point_id)
        .values(state=pb.POINT_STATE_DELETING)
    )


def forget(connection: sa.Connection, point_id: str) -> None:
    """Its files are gone."""
    connection.execute(restore_points.delete().where(restore_points.c.point_id == point_id))


def get(connection: sa.Connection, point_id: str) -> pb.RestorePoint:
    """One, by its ID or a unique prefix of it; POINT_NOT_FOUND."""
    query = sa.select(restore_points).where(named(restore_points.c.point_id, point_id)).limit(2)
    found = connection.execute(query).all()
    if len(found) != 1:
        raise SendenseError(
            Reason.REASON_POINT_NOT_FOUND,
            f"several points begin with {point_id!r}" if found else f"there is no point {point_id!r}",
            remedy=too_short(point_id) or "`sendense point list` shows them all.",
            point=point_id,
        )
    return _messages(connection, found)[0]


def listed(
    connection: sa.Connection,
    *,
    vm: str = "",
    vcenter_name: str = "",
    state: pb.PointState.ValueType = pb.POINT_STATE_COMPLETE,
    limit: int,
    after: tuple[int, str] | None = None,
) -> list[pb.RestorePoint]:
    """Newest first, at most `limit`, older than the (complete_time_us, point_id) `after`."""
    columns = restore_points.c
    query = (
        sa.select(restore_points)
        .where(columns.state == state)
        .order_by(columns.complete_time_us.desc(), columns.point_id)
        .limit(limit)
    )
    if vm:
        seen = virtual_machines.c
        seen_so = sa.exists().where(
            seen.moref == vm,
            seen.vcenter_name == columns.vcenter_name,
            seen.instance_uuid == columns.vm_instance_uuid,
        )
        query = query.where(sa.or_(columns.vm_name == vm, columns.vm_instance_uuid == vm, seen_so))
    if vcenter_name:
        query = query.where(columns.vcenter_name == vcenter_name)
    if after:
        moment_us, point_id = after
        query = query.where(
            sa.or_(
                columns.complete_time_us < moment_us,
                sa.and_(columns.complete_time_us == moment_us, columns.point_id > point_id),
            )
        )
    return _messages(connection, connection.execute(query).all())


def ever_backed_up(connection: sa.Connection, vm: str, vcenter_name: str = "") -> bool:
    """Whether a point, in any state, or a job is or was of a VM with this name or instance UUID."""
    for table in (restore_points, jobs):
        wanted = [sa.or_(table.c.vm_name == vm, table.c.vm_instance_uuid == vm)]
        wanted.append(table.c.vm_instance_uuid != "")  # a job whose VM was not found has its name too
        if vcenter_name:
            wanted.append(table.c.vcenter_name == vcenter_name)
        if connection.scalar(sa.select(sa.exists().where(*wanted))):
            return True
    return False


def of_job(connection: sa.Connection, job_id: str) -> pb.RestorePoint | None:
    """The point that a job writes or has written."""
    rows = connection.execute(sa.select(restore_points).where(restore_points.c.job_id == job_id)).all()
    return _messages(connection, rows)[0] if rows else None


def newest_time_us(connection: sa.Connection, vcenter_uuid: str, vm_instance_uuid: str) -> int:
    """When the newest complete point of a VM was complete, in any repository; 0 without one."""
    columns = restore_points.c
    query = sa.select(sa.func.max(columns.complete_time_us)).where(
        columns.vcenter_uuid == vcenter_uuid,
        columns.vm_instance_uuid == vm_instance_uuid,
        columns.state == pb.POINT_STATE_COMPLETE,
    )
    return connection.scalar(query) or 0


def with_ids(connection: sa.Connection, point_ids: Collection[str]) -> dict[str, pb.RestorePoint]:
    """Those of the points that are known, in any state and repository, by ID."""
    rows = connection.execute(sa.select(restore_points).where(restore_points.c.point_id.in_(point_ids))).all()
    return {point.point_id: point for point in _messages(connection, rows)}


def directories(connection: sa.Connection, repository_name: str) -> dict[str, str]:
    """Of all complete points in a repository: the directory, by ID."""
    columns = restore_points.c
    rows = connection.execute(
        sa.select(columns.point_id, columns.directory)
        .where(columns.repository_name == repository_name, columns.state == pb.POINT_STATE_COMPLETE)
        .order_by(columns.directory)
    )
    return {row.point_id: row.directory for row in rows}


def all_directories(connection: sa.Connection, repository_name: str) -> set[str]:
    """Of all points that are known in a repository, whatever their state."""
    columns = restore_points.c
    query = sa.select(columns.directory).where(columns.repository_name == repository_name)
    return set(connection.scalars(query))


def rename_place(
    connection: sa.Connection, point_id: str, *, vcenter_name: str, repository_name: str
) -> None:
    """Its vCenter or its repository has another name now."""
    connection.execute(
        restore_points.update()
        .where(restore_points.c.point_id == point_id)
        .values(vcenter_name=vcenter_name, repository_name=repository_name)
    )


def summary(connection: sa.Connection, repository_name: str) -> Summary:
    """What complete points there are in a repository."""
    columns = restore_points.c
    complete = sa.and_(columns.repository_name == repository_name, columns.state == pb.POINT_STATE_COMPLETE)
    points_count, newest_us = connection.execute(
        sa.select(sa.func.count(), sa.func.max(columns.complete_time_us)).where(complete)
    ).one()
    machines = sa.select(columns.vcenter_uuid, columns.vm_instance_uuid).where(complete).distinct()
    disks = sa.select(point_disks).join(restore_points).where(complete).subquery()
    return Summary(
        points_count=points_count,
        chains_count=connection.scalar(
            sa.select(sa.func.count()).select_from(disks).where(disks.c.parent_point_id == "")
        )
        or 0,
        machines_count=connection.scalar(sa.select(sa.func.count()).select_from(machines.subquery())) or 0,
        stored_bytes=int(connection.scalar(sa.select(sa.func.sum(disks.c.stored_bytes))) or 0),
        newest_us=newest_us,
    )


def newest_disks(
    connection: sa.Connection,
    vcenter_uuid: str,
    vm_instance_uuid: str,
    repository_name: str,
    *,
    vcenter_name: str,
) -> dict[int, tuple[pb.RestorePoint, pb.PointDisk]]:
    """By device key: the newest complete point of the VM in the repository that holds it, and the disk.

    UUIDs are what an agent says; the vCenter's name here is what an operator said. Both must fit.
    """
    columns = restore_points.c
    query = (
        sa.select(restore_points)
        .where(
            columns.vcenter_name == vcenter_name,
            columns.vcenter_uuid == vcenter_uuid,
            columns.vm_instance_uuid == vm_instance_uuid,
            columns.repository_name == repository_name,
            columns.state == pb.POINT_STATE_COMPLETE,
        )
        .order_by(columns.complete_time_us, columns.point_id)
    )
    newest: dict[int, tuple[pb.RestorePoint, pb.PointDisk]] = {}
    for point in _messages(connection, connection.execute(query).all()):
        newest.update({disk.key: (point, disk) for disk in point.disks})
    return newest


def newest_by_machine(connection: sa.Connection) -> dict[tuple[str, str], int]:
    """(vCenter's UUID, VM's UUID) to the moment of its newest complete point, in microseconds."""
    columns = restore_points.c
    rows = connection.execute(
        sa.select(columns.vcenter_uuid, columns.vm_instance_uuid, sa.func.max(columns.complete_time_us))
        .where(columns.state == pb.POINT_STATE_COMPLETE)
        .group_by(columns.vcenter_uuid, columns.vm_instance_uuid)
    )
    return {(vcenter, machine): moment_us for vcenter, machine, moment_us in rows}


def _columns(point: pb.RestorePoint) -> dict[str, Any]:
    return {
        "point_id": point.point_id,
        "job_id": point.job_id,
        "vcenter_name": point.vcenter_name,
        "vcenter_uuid": point.vcenter_uuid,
        "vm_name": point.vm_name,
        "vm_instance_uuid": point.vm_instance_uuid,
        "repository_name": point.repository_name,
        "directory": point.directory,
        "state": point.state,
        "snapshot_time_us": to_us(point.snapshot_time),
        "complete_time_us": to_us(point.complete_time),
        "quiesce_result": point.quiesce_result,
        "unprotected_disks": list(point.unprotected_disks),
    }


def _messages(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[pb.RestorePoint]:
    found = {row.point_id: _message(row) for row in rows}
    ids = list(found)
    for disk in connection.execute(
        sa.select(point_disks).where(point_disks.c.point_id.in_(ids)).order_by(point_disks.c.key)
    ):
        found[disk.point_id].disks.add(**{name: getattr(disk, name) for name in _DISK_FIELDS})
    verifications.mark(connection, found)
    for point in found.values():
        point.kind = "incremental" if any(disk.parent_point_id for disk in point.disks) else "full"
    built = (
        sa.select(point_disks.c.parent_point_id, point_disks.c.point_id)
        .where(point_disks.c.parent_point_id.in_(ids))
        .distinct()
        .order_by(point_disks.c.point_id)
    )
    for parent, child in connection.execute(built):
        found[parent].dependant_point_ids.append(child)
    return list(found.values())


def _message(row: sa.Row[Any]) -> pb.RestorePoint:
    return pb.RestorePoint(
        point_id=row.point_id,
        job_id=row.job_id,
        vcenter_name=row.vcenter_name,
        vcenter_uuid=row.vcenter_uuid,
        vm_name=row.vm_name,
        vm_instance_uuid=row.vm_instance_uuid,
        repository_name=row.repository_name,
        directory=row.directory,
        state=row.state,
        snapshot_time=to_timestamp(row.snapshot_time_us),
        complete_time=to_timestamp(row.complete_time_us),
        quiesce_result=row.quiesce_result,
        unprotected_disks=row.unprotected_disks,
    )
