# SPDX-License-Identifier: Apache-2.0
"""Jobs: a row each, with rows for disks and warnings; read and written as the contract's Job message."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import audit_log
from sendense_common.errors import SendenseError, reason_name
from sendense_hub.catalog.schema import job_disks, job_interruptions, job_warnings, jobs
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.domain.times import to_timestamp, to_us

SHORTEST_PREFIX = 6
"""Characters of a job's or point's ID that are enough to name it, if they are unique."""

_DISK_FIELDS = [column.name for column in job_disks.c if column.name != "job_id"]


@dataclass(frozen=True)
class Origin:
    """What came with the request and is not part of the job."""

    request_id: str
    traceparent: str


def insert(connection: sa.Connection, job: pb.Job, origin: Origin) -> None:
    """Adds a job.

    Raises:
        SendenseError: VM_BUSY when the VM has an active one.
    """
    if job.state in ACTIVE:
        refuse_busy(connection, job)
    connection.execute(
        jobs.insert().values(request_id=origin.request_id, traceparent=origin.traceparent, **_columns(job))
    )
    _write_parts(connection, job)
    if job.state not in ACTIVE:
        _record_end(job)


def refuse_busy(connection: sa.Connection, job: pb.Job) -> None:
    """VM_BUSY when the VM of a job has an active one already."""
    other = connection.scalar(
        sa.select(jobs.c.job_id).where(
            jobs.c.vcenter_name == job.vcenter_name,
            jobs.c.vm_instance_uuid == job.vm_instance_uuid,
            jobs.c.state.in_(sorted(ACTIVE)),
        )
    )
    if other is not None:
        raise SendenseError(
            Reason.REASON_VM_BUSY,
            f"job {other} of VM {job.vm_name} has not ended yet",
            remedy=f"Watch it with `sendense job watch {other[:8]}`, or cancel it.",
            vm=job.vm_name,
            job=other,
        )


def write(
    connection: sa.Connection, job: pb.Job, *, expected: Collection[pb.JobState.ValueType] = ACTIVE
) -> bool:
    """Replaces what is kept of a job if it is in one of the states `expected`: an ended job never changes.

    Its limit stays: an operator may have set that since the job was read.
    """
    changed = connection.execute(
        jobs.update()
        .where(jobs.c.job_id == job.job_id, jobs.c.state.in_(sorted(expected)))
        .values(**_columns(job))
    )
    if changed.rowcount:
        _write_parts(connection, job)
        if job.state not in ACTIVE:
            _record_end(job)
    return bool(changed.rowcount)


def set_limit(connection: sa.Connection, job_id: str, bytes_per_second: int) -> bool:
    """How fast a job may read from now on; whether it had not ended. Nothing else writes this."""
    changed = connection.execute(
        jobs.update()
        .where(jobs.c.job_id == job_id, jobs.c.state.in_(sorted(ACTIVE)))
        .values(bytes_per_second=bytes_per_second)
    )
    return bool(changed.rowcount)


def limit(connection: sa.Connection, job_id: str) -> int:
    """Bytes per second; 0: none."""
    return connection.scalar(sa.select(jobs.c.bytes_per_second).where(jobs.c.job_id == job_id)) or 0


def _record_end(job: pb.Job) -> None:
    state = pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    reason = {"reason": reason_name(job.failure.reason)} if job.HasField("failure") else {}
    audit_log.record_blocking(
        "backup.end",
        subject=job.job_id,
        outcome="done" if job.state == pb.JOB_STATE_SUCCEEDED else "failed",
        actor=audit_log.system_actor(),
        vm=job.vm_name,
        state=state,
        **reason,
    )


def by_request(connection: sa.Connection, request_id: str) -> pb.Job | None:
    """The job that a request made, if it came before."""
    row = connection.execute(sa.select(jobs).where(jobs.c.request_id == request_id)).one_or_none()
    return None if row is None else _messages(connection, [row])[0]


def get(connection: sa.Connection, job_id: str) -> pb.Job:
    """One, by its ID or a unique prefix of it; JOB_NOT_FOUND."""
    found = connection.execute(sa.select(jobs).where(named(jobs.c.job_id, job_id)).limit(2)).all()
    if len(found) != 1:
        raise SendenseError(
            Reason.REASON_JOB_NOT_FOUND,
            f"several jobs begin with {job_id!r}" if found else f"there is no job {job_id!r}",
            remedy=f"{too_short(job_id)} `sendense job list` shows them all.".lstrip(),
            job=job_id,
        )
    return _messages(connection, found)[0]


def states(connection: sa.Connection, job_ids: Collection[str]) -> dict[str, pb.JobState.ValueType]:
    """By ID; those that are not known are missing."""
    rows = connection.execute(sa.select(jobs.c.job_id, jobs.c.state).where(jobs.c.job_id.in_(job_ids)))
    return {row.job_id: row.state for row in rows}


def traceparent(connection: sa.Connection, job_id: str) -> str:
    """The context of the request that made it."""
    return str(connection.scalar(sa.select(jobs.c.traceparent).where(jobs.c.job_id == job_id)) or "")


def listed(
    connection: sa.Connection,
    *,
    vm: str = "",
    states: Sequence[int] = (),
    limit: int,
    after: tuple[int, str] | None = None,
) -> list[pb.Job]:
    """Newest first, at most `limit`, older than the (create_time_us, job_id) `after`."""
    query = sa.select(jobs).order_by(jobs.c.create_time_us.desc(), jobs.c.job_id).limit(limit)
    if vm:
        query = query.where(jobs.c.vm_name == vm)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if after:
        moment_us, job_id = after
        query = query.where(
            sa.or_(
                jobs.c.create_time_us < moment_us,
                sa.and_(jobs.c.create_time_us == moment_us, jobs.c.job_id > job_id),
            )
        )
    return _messages(connection, connection.execute(query).all())


def named(column: sa.Column[str], wanted: str) -> sa.ColumnElement[bool]:
    """The ID itself, or what begins with a prefix that is long enough."""
    if len(wanted) < SHORTEST_PREFIX:
        return column == wanted
    return column.startswith(wanted, autoescape=True)


def too_short(wanted: str) -> str:
    """What to do about a part of an ID that is too short to look for; empty when it is long enough."""
    short = 0 < len(wanted) < SHORTEST_PREFIX
    return f"Give its ID, or the first {SHORTEST_PREFIX} or more characters of it." if short else ""


def _columns(job: pb.Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "vcenter_name": job.vcenter_name,
        "vm_name": job.vm_name,
        "vm_instance_uuid": job.vm_instance_uuid,
        "site_name": job.site_name,
        "repository_name": job.repository_name,
        "state": job.state,
        "phase": job.phase,
        "ended_in_phase": job.ended_in_phase,
        "attempt": job.attempt,
        "mode": job.mode,
        "quiesce": job.quiesce,
        "quiesce_result": job.quiesce_result,
        "point_id": job.point_id,
        "trace_id": job.trace_id,
        "failure": job.failure.SerializeToString() if job.HasField("failure") else b"",
        "create_time_us": to_us(job.create_time),
        "start_time_us": to_us(job.start_time),
        "end_time_us": to_us(job.end_time),
    }


def _write_parts(connection: sa.Connection, job: pb.Job) -> None:
    connection.execute(job_disks.delete().where(job_disks.c.job_id == job.job_id))
    disks = [{name: getattr(disk, name) for name in _DISK_FIELDS} for disk in job.disks]
    if disks:
        connection.execute(job_disks.insert().values(job_id=job.job_id), disks)
    connection.execute(job_warnings.delete().where(job_warnings.c.job_id == job.job_id))
    warnings = [
        {
            "job_id": job.job_id,
            "number": number,
            "code": warning.code,
            "message": warning.message,
            "disk_key": warning.disk_key,
            "time_us": warning.time.ToMicroseconds(),
        }
        for number, warning in enumerate(job.warnings)
    ]
    if warnings:
        connection.execute(job_warnings.insert(), warnings)
    connection.execute(job_interruptions.delete().where(job_interruptions.c.job_id == job.job_id))
    interruptions = [
        {"job_id": job.job_id, "number": number, "interruption": each.SerializeToString()}
        for number, each in enumerate(job.interruptions)
    ]
    if interruptions:
        connection.execute(job_interruptions.insert(), interruptions)


def _messages(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[pb.Job]:
    found = {row.job_id: _message(row) for row in rows}
    ids = list(found)
    for disk in connection.execute(
        sa.select(job_disks).where(job_disks.c.job_id.in_(ids)).order_by(job_disks.c.key)
    ):
        found[disk.job_id].disks.add(**{name: getattr(disk, name) for name in _DISK_FIELDS})
    for warning in connection.execute(
        sa.select(job_warnings).where(job_warnings.c.job_id.in_(ids)).order_by(job_warnings.c.number)
    ):
        found[warning.job_id].warnings.add(
            code=warning.code,
            message=warning.message,
            disk_key=warning.disk_key,
            time=to_timestamp(warning.time_us),
        )
    for each in connection.execute(
        sa.select(job_interruptions)
        .where(job_interruptions.c.job_id.in_(ids))
        .order_by(job_interruptions.c.number)
    ):
        found[each.job_id].interruptions.add().ParseFromString(each.interruption)
    return list(found.values())


def _message(row: sa.Row[Any]) -> pb.Job:
    return pb.Job(
        job_id=row.job_id,
        vcenter_name=row.vcenter_name,
        vm_name=row.vm_name,
        vm_instance_uuid=row.vm_instance_uuid,
        site_name=row.site_name,
        repository_name=row.repository_name,
        state=row.state,
        phase=row.phase,
        ended_in_phase=row.ended_in_phase,
        attempt=row.attempt,
        mode=row.mode,
        quiesce=row.quiesce,
        quiesce_result=row.quiesce_result,
        point_id=row.point_id,
        trace_id=row.trace_id,
        failure=Failure.FromString(row.failure) if row.failure else None,
        create_time=to_timestamp(row.create_time_us),
        start_time=to_timestamp(row.start_time_us),
        end_time=to_timestamp(row.end_time_us),
        bytes_per_second=row.bytes_per_second,
    )
