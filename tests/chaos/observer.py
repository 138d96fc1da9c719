# SPDX-License-Identifier: Apache-2.0
"""What a hub says of jobs and points, read all through a run: nothing jumps back, nothing is said too early.

Pure but for the `look` that it is given. Each reader that asks on its own (a stream, a poll) has a `View` of
its own: what two of them are told at the same time may arrive in any order, what one is told may not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sendense.hub.v1 import job_pb2, point_service_pb2
from sendense.hub.v1.job_pb2 import Job, JobDisk
from sendense.hub.v1.point_service_pb2 import RestorePoint

_QUEUED, _RUNNING, _WAITING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_WAITING
_CANCELLING, _CANCELLED = job_pb2.JOB_STATE_CANCELLING, job_pb2.JOB_STATE_CANCELLED
_SUCCEEDED, _FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED
ENDED = frozenset({_SUCCEEDED, _FAILED, _CANCELLED})

_MAY_FOLLOW: dict[int, Collection[int]] = {
    _QUEUED: {_QUEUED, _RUNNING, _WAITING, _CANCELLING, *ENDED},
    _RUNNING: {_RUNNING, _WAITING, _CANCELLING, *ENDED},
    _WAITING: {_WAITING, _RUNNING, _CANCELLING, *ENDED},
    # A commit that began wins over the cancel.
    _CANCELLING: {_CANCELLING, *ENDED},
    _SUCCEEDED: {_SUCCEEDED},
    _FAILED: {_FAILED},
    _CANCELLED: {_CANCELLED},
}
_COUNTERS = ("read_bytes", "copied_bytes", "zero_bytes", "wire_bytes")
_COPIED = {job_pb2.DISK_STATE_COPIED, job_pb2.DISK_STATE_SKIPPED}

Look = Callable[[RestorePoint], list[str]]
"""What is not complete of a point that is said to be."""


@dataclass
class Observer:
    """All that was wrong so far."""

    look: Look = lambda point: []
    wrong: list[str] = field(default_factory=list)
    states_read: int = 0
    _looked: set[str] = field(default_factory=set)

    def view(self) -> View:
        """For one reader."""
        return View(self)

    def say(self, what: str) -> None:
        """Notes something wrong, once."""
        if what not in self.wrong:
            self.wrong.append(what)

    def complete(self, point: RestorePoint) -> None:
        """A point that is said to be complete: looked at once."""
        if point.point_id not in self._looked:
            self._looked.add(point.point_id)
            for each in self.look(point):
                self.say(f"point {point.point_id} is said to be complete: {each}")


class View:
    """What one reader was told, in its order."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._jobs: dict[str, Job] = {}
        self._points: dict[str, RestorePoint] = {}

    def job(self, now: Job) -> None:
        """A job as it was just told."""
        self._observer.states_read += 1
        problems = [*alone(now), *since(self._jobs.get(now.job_id, Job()), now)]
        for problem in problems:
            self._observer.say(f"job {now.job_id} of {now.vm_name}, attempt {now.attempt}: {problem}")
        self._jobs[now.job_id] = now

    def point(self, now: RestorePoint) -> None:
        """A point as it was just told."""
        self._observer.states_read += 1
        before = self._points.get(now.point_id)
        name = point_service_pb2.PointState.Name
        if before is not None and now.state < before.state:
            self._observer.say(f"point {now.point_id} went from {name(before.state)} to {name(now.state)}")
        if before is not None and now.state == before.state and _layers(now) != _layers(before):
            self._observer.say(f"point {now.point_id} is complete and changed its disks")
        if now.state == point_service_pb2.POINT_STATE_COMPLETE:
            self._observer.complete(now)
        self._points[now.point_id] = now


def alone(job: Job) -> list[str]:
    """What cannot be true of a job at any time."""
    wrong = [
        f"disk {disk.key} has read {disk.read_bytes} bytes of {disk.planned_read_bytes} planned"
        for disk in job.disks
        if disk.read_bytes > disk.planned_read_bytes and disk.state != job_pb2.DISK_STATE_SKIPPED
    ]
    if (job.state in ENDED) != job.HasField("end_time"):
        wrong.append(f"{_name(job)} {'without' if job.state in ENDED else 'with'} an end time")
    if (job.state in ENDED) != (job.phase == job_pb2.JOB_PHASE_DONE):
        wrong.append(f"{_name(job)} in phase {job_pb2.JobPhase.Name(job.phase)}")
    if job.state == _SUCCEEDED:
        if not job.point_id:
            wrong.append("succeeded without a point")
        if not job.disks or any(disk.state not in _COPIED for disk in job.disks):
            states = [job_pb2.DiskState.Name(disk.state) for disk in job.disks]
            wrong.append(f"succeeded with disks {states}")
    elif job.state in ENDED and job.point_id:
        wrong.append(f"{_name(job)} with a point")
    if job.state == _FAILED and not (job.failure.reason and job.failure.message):
        wrong.append("failed without a cause")
    return wrong


def since(before: Job, now: Job) -> list[str]:
    """What cannot be true of a job after what was told of it before."""
    if not before.job_id:
        return []
    if before.state in ENDED:
        return [] if before == now else [f"changed after its end: {_changed(before, now)}"]
    wrong = []
    if now.state not in _MAY_FOLLOW.get(before.state, ()):
        wrong.append(f"went from {_name(before)} to {_name(now)}")
    if now.attempt < before.attempt:
        wrong.append(f"attempt {before.attempt} before")
    if before.point_id and now.point_id != before.point_id:
        wrong.append(f"had point {before.point_id}, has {now.point_id or 'none'}")
    if len(now.interruptions) < len(before.interruptions):
        wrong.append(f"{len(before.interruptions)} interruptions became {len(now.interruptions)}")
    if before.HasField("start_time") and now.start_time != before.start_time:
        wrong.append("started twice")
    if now.attempt == before.attempt:
        wrong += _within_attempt(before, now)
    return wrong


def _within_attempt(before: Job, now: Job) -> list[str]:
    wrong = []
    if now.phase < before.phase:
        phases = job_pb2.JobPhase.Name
        wrong.append(f"phase {phases(before.phase)} became {phases(now.phase)}")
    disks = {disk.key: disk for disk in now.disks}
    for disk in before.disks:
        if disk.key in disks:
            wrong += _of_disk(disk, disks[disk.key])
        else:
            wrong.append(f"disk {disk.key} is gone")
    return wrong


def _of_disk(before: JobDisk, now: JobDisk) -> list[str]:
    wrong = [
        f"disk {now.key}: {counter} fell from {getattr(before, counter)} to {getattr(now, counter)}"
        for counter in _COUNTERS
        if getattr(now, counter) < getattr(before, counter)
    ]
    if now.state < before.state:
        states = job_pb2.DiskState.Name
        wrong.append(f"disk {now.key}: {states(before.state)} became {states(now.state)}")
    return wrong


def _changed(before: Job, now: Job) -> str:
    names = (field.name for field in Job.DESCRIPTOR.fields)
    return ", ".join(name for name in names if getattr(before, name) != getattr(now, name))


def _layers(point: RestorePoint) -> list[str]:
    return [disk.layer_file for disk in point.disks]


def _name(job: Job) -> str:
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
