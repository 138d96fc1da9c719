# SPDX-License-Identifier: Apache-2.0
"""How events of an agent change what a job shows."""

from __future__ import annotations

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.jobs.board import Change
from sendense_hub.jobs.point_record import mode_name

# The agent's counters do not touch these any more.
_SETTLED = frozenset({pb.DISK_STATE_COPIED, pb.DISK_STATE_SKIPPED})


def start(job: pb.Job) -> None:
    """An attempt begins."""
    if job.state == pb.JOB_STATE_QUEUED:
        job.state = pb.JOB_STATE_RUNNING
    job.phase = max(job.phase, pb.JOB_PHASE_PREPARE)
    job.attempt += 1
    if not job.HasField("start_time"):
        job.start_time.GetCurrentTime()


def enter(phase: pb.JobPhase.ValueType) -> Change:
    """A phase begins; phases only go forward."""

    def change(job: pb.Job) -> None:
        job.phase = max(job.phase, phase)

    return change


def begin_commit(job: pb.Job) -> None:
    """The point is being completed, which nobody can cancel; CANCELLED when somebody has done so before."""
    if job.state == pb.JOB_STATE_CANCELLING:
        raise SendenseError(
            Reason.REASON_CANCELLED, f"job {job.job_id} was cancelled by an operator", retryable=False
        )
    job.phase = max(job.phase, pb.JOB_PHASE_COMMIT)


def has_point(point_id: str) -> Change:
    """The point is complete; what is left is the snapshot."""

    def change(job: pb.Job) -> None:
        job.point_id = point_id
        job.phase = max(job.phase, pb.JOB_PHASE_REMOVE_SNAPSHOT)

    return change


def plan(planned: agent.BackupPlan) -> Change:
    """The disks are known."""

    def change(job: pb.Job) -> None:
        del job.disks[:]
        job.vm_name = planned.vm_name
        job.quiesce_result = planned.quiesce_result
        job.phase = max(job.phase, pb.JOB_PHASE_LAYERS)
        requested = job.mode == pb.BACKUP_MODE_FULL
        for disk in planned.disks:
            job.disks.add(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                state=pb.DISK_STATE_PENDING,
                mode=mode_name(disk.mode),
                mode_reason="requested" if requested else disk.mode_reason,
                planned_read_bytes=disk.planned_read_bytes,
                changed_bytes=disk.changed_bytes,
            )
        for skipped in planned.skipped_disks:
            job.disks.add(
                key=skipped.key,
                label=skipped.label,
                capacity_bytes=skipped.capacity_bytes,
                state=pb.DISK_STATE_SKIPPED,
                mode_reason=skipped.reason,
            )

    return change


def progress(counted: agent.BackupProgress, copying_s: float) -> Change:
    """New counters; `copying_s`: since copying began."""

    def change(job: pb.Job) -> None:
        disks = {disk.key: disk for disk in job.disks}
        for one in counted.disks:
            disk = disks.get(one.disk_key)
            if disk is None or disk.state in _SETTLED:
                continue
            disk.state = pb.DISK_STATE_COPYING
            disk.seconds = max(disk.seconds, copying_s)
            _count(disk, one)

    return change


def disk_done(done: agent.DiskDone) -> Change:
    """One disk is copied and flushed."""

    def change(job: pb.Job) -> None:
        for disk in job.disks:
            if disk.key == done.progress.disk_key and disk.state not in _SETTLED:
                _count(disk, done.progress)
                disk.state = pb.DISK_STATE_COPIED
                disk.seconds = done.duration.ToNanoseconds() / 1e9

    return change


def warn(code: str, message: str, disk_key: int = 0) -> Change:
    """Something that a person should know."""

    def change(job: pb.Job) -> None:
        job.warnings.add(code=code, message=message, disk_key=disk_key).time.GetCurrentTime()

    return change


def _count(disk: pb.JobDisk, counted: agent.DiskProgress) -> None:
    for name in ("read_bytes", "copied_bytes", "zero_bytes", "wire_bytes"):
        setattr(disk, name, max(getattr(disk, name), getattr(counted, name)))
