# SPDX-License-Identifier: Apache-2.0
"""The named points of a job at which something goes wrong, and how it is told that one is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.observer import ENDED
from tests.chaos.stage import Stage

from sendense.hub.v1 import job_pb2
from sendense.hub.v1.job_pb2 import Job

_POLL_S = 0.03
_COPIED = {job_pb2.DISK_STATE_COPIED, job_pb2.DISK_STATE_SKIPPED}


@dataclass
class Progress:
    """What is known of a job that runs."""

    stage: Stage
    vm: str
    vm_uuid: str
    job: Job
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.job.state in ENDED

    def half_points(self) -> list[Path]:
        """Directories of points of this VM that have no commit mark."""
        return [
            each
            for each in self.stage.repository.glob(f"*/{self.vm_uuid}/*")
            if not (each / "point.json").exists()
        ]

    def ledger_bytes(self) -> int:
        """Of the point that is written."""
        return sum(_size(file) for each in self.half_points() for file in each.glob("*.ledger"))

    def marks(self) -> int:
        """Complete points of this VM."""
        return len(list(self.stage.repository.glob(f"*/{self.vm_uuid}/*/point.json")))

    async def runs(self, task: str) -> bool:
        """Whether the vCenter does it now, for whomever."""
        return task in await self.stage.lab("running_tasks")

    async def snapshots(self) -> int:
        return len((await self.stage.lab("state", vm=self.vm))["snapshots"])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


Reached = Callable[[Progress], Awaitable[bool]]


def _phase(phase: job_pb2.JobPhase.ValueType) -> Reached:
    async def reached(now: Progress) -> bool:
        return now.job.phase >= phase

    return reached


def _read(share: float) -> Reached:
    async def reached(now: Progress) -> bool:
        read = sum(disk.read_bytes for disk in now.job.disks)
        return read > share * sum(disk.planned_read_bytes for disk in now.job.disks)

    return reached


async def _accepted(now: Progress) -> bool:
    return True


async def _snapshot_is_made(now: Progress) -> bool:
    return await now.runs("CreateSnapshot_Task")


async def _snapshot_is_there(now: Progress) -> bool:
    return await now.snapshots() > 0


async def _layers_are_there(now: Progress) -> bool:
    return bool(now.half_points())


async def _first_checkpoint(now: Progress) -> bool:
    return now.ledger_bytes() > 0


async def _one_disk_copied(now: Progress) -> bool:
    return any(disk.state == job_pb2.DISK_STATE_COPIED for disk in now.job.disks)


async def _all_copied(now: Progress) -> bool:
    return bool(now.job.disks) and all(disk.state in _COPIED for disk in now.job.disks)


async def _snapshot_is_removed(now: Progress) -> bool:
    return now.job.phase >= job_pb2.JOB_PHASE_COMMIT and await now.runs("RemoveSnapshot_Task")


MOMENTS: dict[str, Reached] = {
    "accepted": _accepted,
    "preparing": _phase(job_pb2.JOB_PHASE_PREPARE),
    "login": _phase(job_pb2.JOB_PHASE_SNAPSHOT),
    "snapshot is made": _snapshot_is_made,
    "snapshot is there": _snapshot_is_there,
    "layers": _phase(job_pb2.JOB_PHASE_LAYERS),
    "layers are there": _layers_are_there,
    "copy begins": _phase(job_pb2.JOB_PHASE_COPY),
    "first bytes": _read(0.0),
    "first checkpoint": _first_checkpoint,
    "a quarter": _read(0.25),
    "half": _read(0.5),
    "three quarters": _read(0.75),
    "one disk copied": _one_disk_copied,
    "all copied": _all_copied,
    "commit": _phase(job_pb2.JOB_PHASE_COMMIT),
    "commit mark": _accepted,
    "snapshot is removed": _snapshot_is_removed,
    "ended": _phase(job_pb2.JOB_PHASE_DONE),
}
"""In their order. Of the commit mark see `reached`."""


_ALSO_AFTERWARDS = {"commit mark", "ended"}
"""Of an ended job, all phases seem to be reached; only these were."""


async def reached(name: str, now: Progress, *, marks_before: int) -> bool:
    """Waits for a moment; False when the job ended without it."""
    while True:
        if name == "commit mark":
            there = now.marks() > marks_before
        else:
            there = await MOMENTS[name](now)
        if now.ended:
            return there and name in _ALSO_AFTERWARDS
        if there:
            return True
        now.changed.clear()
        try:
            async with asyncio.timeout(_POLL_S):
                await now.changed.wait()
        except TimeoutError:
            pass
