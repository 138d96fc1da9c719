# SPDX-License-Identifier: Apache-2.0
"""`make kills`: each process of the hub is killed (SIGKILL) in each phase of a job, and so is its successor.

One backup for each process and phase. Exit code 0 only when the same job made its point each time, just one,
what is exported is what the snapshot held, and nothing is left over.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.chaos import aftermath
from tests.chaos.faults import Faults
from tests.chaos.lanes import Lane, Tally
from tests.chaos.observer import Observer
from tests.chaos.rooms import NoRooms
from tests.chaos.run import LOGS, look, observe, say
from tests.chaos.stage import Stage, stage
from tests.e2e.kit import MIB

from sendense.hub.v1 import job_pb2

# As large as each other: at half of it, no qemu-nbd has done its part.
_VM, _SIZES = "killed", [48 * MIB, 48 * MIB + 512]
_TASK_S = 1.0
_AFTERMATH_S = 200.0
_ANYTIME = (
    "accepted",
    "preparing",
    "login",
    "snapshot is there",
    "layers are there",
    "half",
    "commit",
    "commit mark",
    "snapshot is removed",
)
_WHILE_IT_SERVES = ("layers are there", "copy begins", "half")
WHERE = {"supervisor": _ANYTIME, "api": _ANYTIME, "gateway": _ANYTIME, "qemu-nbd": _WHILE_IT_SERVES}
"""Moments at which a process is killed; qemu-nbd only runs in some."""


@dataclass
class Script:
    """One kill for each backup; deals as `tests.chaos.lanes.Dealer` says."""

    left: list[tuple[str, str]]
    missed: list[str] = field(default_factory=list)

    def planned(self, rng: random.Random) -> list[tuple[str, str]]:
        """The next one."""
        return [self.left.pop(0)]

    def unused(self, kind: str, moment: str, *, reached: bool) -> str:
        """Nothing takes its place."""
        why = "there was no such process" if reached else "the job ended before"
        self.missed.append(f"{kind} at {moment!r}: {why}")
        return ""


async def play(made: Stage) -> list[str]:
    """All of them, one after another; what is wrong."""
    script = Script([(moment, f"kill-{process}") for process, moments in WHERE.items() for moment in moments])
    dealt, count = list(script.left), len(script.left)
    observer, tally = Observer(look=lambda point: look(made, point)), Tally()
    faults = Faults(made, long=0.0, twice=1.0)
    for task in ("CreateSnapshot_Task", "RemoveSnapshot_Task"):
        await made.lab("delay_task", method=task, seconds=_TASK_S)
    lane = Lane(made, faults, observer, tally, script, name=_VM, sizes=_SIZES, seed="kills", say=say)
    observing = asyncio.create_task(observe(made, observer))
    try:
        await lane.run(lambda: not script.left)
        await faults.healed()
        left = await aftermath.left(made, [_VM], within_s=_AFTERMATH_S, say=say)
        await lane.compare_all()
    finally:
        observing.cancel()
        await asyncio.gather(observing, return_exceptions=True)
    if not observing.cancelled() and (error := observing.exception()):
        raise error
    kills = sum(faults.done.values())
    # Its last bytes were flushed before it was killed: nobody needs another one then.
    alone = [
        job.job_id
        for (_, kind), job in zip(dealt, tally.jobs, strict=False)
        if kind == "kill-qemu-nbd" and not job.interruptions
    ]
    failed = [job for job in tally.jobs if job.state != job_pb2.JOB_STATE_SUCCEEDED]
    say(
        f"{kills} kills: "
        + ", ".join(f"{name.removeprefix('kill-')} {number}" for name, number in sorted(faults.done.items()))
        + (f"; {len(alone)} had written all before, and no successor" if alone else "")
    )
    say(
        f"{len(tally.jobs)} of {count} backups ended, {len(tally.jobs) - len(failed)} with their point; "
        f"{sum(bool(job.interruptions) for job in tally.jobs)} were interrupted; "
        f"{tally.identical} identical; {len(left)} left; {observer.states_read} states read"
    )
    return [
        *script.missed,
        *([f"{kills} kills instead of two in each backup"] if kills != 2 * count - len(alone) else []),
        *(f"job {job.job_id} failed: {job.failure.message}" for job in failed),
        *await _not_once(made, tally),
        *tally.unclean,
        *tally.not_identical,
        *observer.wrong,
        *(f"left: {each}" for each in left),
        *faults.defects,
    ]


async def _not_once(made: Stage, tally: Tally) -> list[str]:
    """Jobs that have another number of points than one. Those of old chains were deleted meanwhile."""
    _, points = await made.hub.listed(len(tally.jobs) + 1)
    found = Counter(point.job_id for point in points)
    known = {job.job_id for job in tally.jobs}
    return [f"job {job_id} has {number} points" for job_id, number in found.items() if number != 1] + [
        f"a point of job {job_id}, which nobody began" for job_id in found if job_id not in known
    ]


async def _run() -> list[str]:
    async with stage(LOGS) as made:
        return await play(made)


def main() -> int:
    """The command."""
    began = time.monotonic()
    try:
        wrong = asyncio.run(_run())
    except NoRooms as error:
        say(f"make kills cannot run here: {error}")
        return 2
    for each in wrong:
        say(f"wrong: {each}")
    say(f"{'FAILED' if wrong else 'passed'} in {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
