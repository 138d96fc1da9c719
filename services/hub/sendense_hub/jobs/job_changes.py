# SPDX-License-Identifier: Apache-2.0
"""How events of an agent change what a job shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sendense.agent.v1 import backup_pb2 as agent
from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.domain import resuming
from sendense_hub.domain.cutting import cut
from sendense_hub.domain.plan_rules import NONE_EARLIER
from sendense_hub.jobs.board import Change, cancelled
from sendense_hub.jobs.point_record import mode_name

Earlier = Mapping[int, pb.JobDisk]
# The hub's own warnings come on top: there are few of them.
_AGENT_WARNINGS = 200
_WARNING_BYTES = 1024
_LEFT_OUT = "warnings_left_out"
_COUNTERS = ("read_bytes", "copied_bytes", "zero_bytes", "wire_bytes", "audited_bytes", "audit_mismatches")
# The agent's counters do not touch these any more.
_SETTLED = frozenset({pb.DISK_STATE_COPIED, pb.DISK_STATE_SKIPPED})


def start(job: pb.Job) -> None:
    """An attempt begins."""
    if job.state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_WAITING):
        job.state = pb.JOB_STATE_RUNNING
    job.phase = pb.JOB_PHASE_PREPARE
    job.attempt += 1
    if job.interruptions:
        job.interruptions[-1].ClearField("next_try_time")
    for disk in job.disks:
        if disk.state != pb.DISK_STATE_SKIPPED:
            disk.state = pb.DISK_STATE_PENDING  # what is kept of it, the plan of this attempt says
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
        raise cancelled(job.job_id)
    job.phase = max(job.phase, pb.JOB_PHASE_COMMIT)


def has_point(point_id: str) -> Change:
    """The point is complete; what is left is the snapshot."""

    def change(job: pb.Job) -> None:
        job.point_id = point_id
        job.phase = max(job.phase, pb.JOB_PHASE_REMOVE_SNAPSHOT)

    return change


def plan(planned: agent.BackupPlan, went_on: str = "") -> Change:
    """The disks are known; counters go on from what earlier attempts did.

    Args:
        planned: the plan.
        went_on: how this attempt goes on where an earlier one was interrupted.
    """

    def change(job: pb.Job) -> None:
        before = copies(job.disks)
        if job.interruptions:
            job.interruptions[-1].went_on = went_on
        del job.disks[:]
        job.vm_name = planned.vm_name
        job.quiesce_result = planned.quiesce_result
        job.phase = max(job.phase, pb.JOB_PHASE_LAYERS)
        requested = job.mode == pb.BACKUP_MODE_FULL
        for disk in planned.disks:
            earlier = before.get(disk.key, pb.JobDisk())
            job.disks.add(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                state=pb.DISK_STATE_PENDING,
                mode=mode_name(disk.mode),
                mode_reason="requested" if requested else disk.mode_reason,
                planned_read_bytes=(
                    # What is left to read is known when the agent knows what is written.
                    earlier.planned_read_bytes
                    if disk.keeps_layer
                    else earlier.read_bytes + disk.planned_read_bytes
                ),
                changed_bytes=disk.changed_bytes,
                recopied_bytes=earlier.recopied_bytes,
                seconds=earlier.seconds,
                **{name: getattr(earlier, name) for name in _COUNTERS},
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


def copies(disks: Iterable[pb.JobDisk]) -> dict[int, pb.JobDisk]:
    """As they are now, by key."""
    result: dict[int, pb.JobDisk] = {}
    for disk in disks:
        result[disk.key] = pb.JobDisk()
        result[disk.key].CopyFrom(disk)
    return result


def progress(counted: agent.BackupProgress, copying_s: float, earlier: Earlier = NONE_EARLIER) -> Change:
    """New counters.

    Args:
        counted: in this attempt.
        copying_s: since copying began in this attempt.
        earlier: disks by key as they were when this attempt's plan came.
    """

    def change(job: pb.Job) -> None:
        disks = {disk.key: disk for disk in job.disks}
        for one in counted.disks:
            disk = disks.get(one.disk_key)
            if disk is None or disk.state in _SETTLED:
                continue
            before = earlier.get(disk.key, pb.JobDisk())
            disk.state = pb.DISK_STATE_COPYING
            disk.seconds = max(disk.seconds, before.seconds + copying_s)
            _count(disk, one, before)

    return change


def disk_done(done: agent.DiskDone, earlier: Earlier = NONE_EARLIER) -> Change:
    """One disk is copied and flushed; `earlier`: as for `progress`."""

    def change(job: pb.Job) -> None:
        for disk in job.disks:
            if disk.key == done.progress.disk_key and disk.state not in _SETTLED:
                before = earlier.get(disk.key, pb.JobDisk())
                _count(disk, done.progress, before)
                disk.state = pb.DISK_STATE_COPIED
                disk.seconds = before.seconds + done.duration.ToNanoseconds() / 1e9

    return change


def keeps(kept_bytes: Mapping[int, int]) -> Change:
    """By device key: data of earlier attempts that is of use. What else they copied is copied again.

    The ledgers know it exactly; a process that was killed had not told its last counters.
    """

    def change(job: pb.Job) -> None:
        for disk in job.disks:
            if disk.key in kept_bytes:
                kept = kept_bytes[disk.key]
                disk.copied_bytes = max(disk.copied_bytes, disk.recopied_bytes + kept)
                again = disk.copied_bytes - disk.recopied_bytes - kept
                disk.recopied_bytes += again
                if job.interruptions:
                    job.interruptions[-1].recopied_bytes += again

    return change


def interrupt(
    interruption: pb.JobInterruption,
    *,
    got_further: bool,
    recopied: Mapping[int, int],
    next_try_us: Callable[[Sequence[pb.JobInterruption]], int | None],
) -> Change:
    """The attempt is over, and the job waits for the next one; or it is left as it is, to be ended.

    Args:
        interruption: what happened.
        got_further: whether the attempt stored anything.
        recopied: by device key, bytes that are copied again.
        next_try_us: see `resuming.next_try_us`.
    """

    def change(job: pb.Job) -> None:
        if job.state == pb.JOB_STATE_CANCELLING:
            return
        resuming.record(job, interruption, got_further=got_further)
        for disk in job.disks:
            disk.recopied_bytes += recopied.get(disk.key, 0)
        moment_us = next_try_us(job.interruptions)
        if moment_us is not None:
            job.interruptions[-1].next_try_time.FromMicroseconds(moment_us)
            job.state = pb.JOB_STATE_WAITING

    return change


def warn(code: str, message: str, disk_key: int = 0) -> Change:
    """Something that a person should know."""

    def change(job: pb.Job) -> None:
        job.warnings.add(code=code, message=message, disk_key=disk_key).time.GetCurrentTime()

    return change


def warn_of(said: agent.Warning) -> Change:
    """What the agent says that a person should know: so much of it as there is room for."""

    def change(job: pb.Job) -> None:
        if len(job.warnings) < _AGENT_WARNINGS:
            code, message = cut(said.code, _WARNING_BYTES), cut(said.message, _WARNING_BYTES)
            warn(code, message, said.disk_key)(job)
        elif not any(each.code == _LEFT_OUT for each in job.warnings):
            warn(_LEFT_OUT, f"The agent said more than {_AGENT_WARNINGS} things like these.")(job)

    return change


def _count(disk: pb.JobDisk, counted: agent.DiskProgress, earlier: pb.JobDisk) -> None:
    for name in _COUNTERS:
        setattr(disk, name, max(getattr(disk, name), getattr(earlier, name) + getattr(counted, name)))
    if counted.HasField("to_read_bytes"):
        disk.planned_read_bytes = earlier.read_bytes + counted.to_read_bytes
