# SPDX-License-Identifier: Apache-2.0
"""`make chaos`: many backups, all that can be killed, frozen, cut or filled, at random; build/chaos.json.

Ends by itself, with exit code 0 only when every job ended truthfully, every complete point is what its
snapshot held, and nothing was left over. The same seed chooses the same; when things happen, the machine
chooses.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.chaos import aftermath
from tests.chaos.faults import Faults
from tests.chaos.hub import Away
from tests.chaos.lanes import UNCLEAN, Decks, Lane, Tally
from tests.chaos.observer import Observer
from tests.chaos.report import Report, because, recopied
from tests.chaos.rooms import NoRooms
from tests.chaos.stage import CHECKPOINT_MIB, Stage, stage
from tests.e2e.kit import MIB

from sendense.hub.v1 import job_pb2
from sendense.hub.v1.point_service_pb2 import RestorePoint
from sendense_common.errors import SendenseError

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "build" / "chaos-logs"
VMS = {"alpha": [96 * MIB, 40 * MIB + 512], "beta": [128 * MIB], "gamma": [64 * MIB, 64 * MIB]}
_IN_FLIGHT_MIB = 16
_TASK_S = 0.4
_OBSERVE_EVERY_S = 0.3
_OBSERVED = 12
_AFTERMATH_S = 200.0
_JOBS_END_WITHIN_S = 340.0


@dataclass(frozen=True)
class Wanted:
    """How much of it."""

    seed: int
    faults: int = 200
    jobs: int = 60
    seconds: float = 1000.0
    """No new backup is begun afterwards."""
    faults_per_job: float = 4.4
    long: float = 0.06
    """Share of silences that outlast every keepalive."""


async def play(wanted: Wanted, say: Callable[[str], None]) -> Report:
    """One run.

    Raises:
        NoRooms: this machine cannot have one.
    """
    began = time.monotonic()
    async with stage(LOGS) as made:
        say(f"logs: {made.installation.logs}")
        observer = Observer(look=lambda point: look(made, point))
        tally, faults = Tally(), Faults(made, long=wanted.long)
        dealer = Decks(wanted.seed, wanted.faults_per_job)
        for task in ("CreateSnapshot_Task", "RemoveSnapshot_Task"):
            await made.lab("delay_task", method=task, seconds=_TASK_S)

        def enough() -> bool:
            done = sum(faults.done.values()) >= wanted.faults and len(tally.jobs) >= wanted.jobs
            return done or time.monotonic() - began > wanted.seconds

        lanes = [
            Lane(made, faults, observer, tally, dealer, name=name, sizes=sizes,
                 seed=f"{wanted.seed} {name}", say=say)
            for name, sizes in VMS.items()
        ]  # fmt: skip
        observing = asyncio.create_task(observe(made, observer))
        try:
            await _played(lanes, enough, wanted.seconds + _JOBS_END_WITHIN_S, tally)
            await faults.healed()
            say("everything was mended; now all must come back by itself")
            for command in ("clear_faults", "clear_events"):
                await made.lab(command)
            left = await aftermath.left(made, list(VMS), within_s=_AFTERMATH_S, say=say)
            for lane in lanes:
                await lane.compare_all()
        finally:
            observing.cancel()
            await asyncio.gather(observing, return_exceptions=True)
        if not observing.cancelled() and (error := observing.exception()):
            raise error
    return _report(wanted, time.monotonic() - began, faults, tally, observer, left)


async def _played(lanes: list[Lane], enough: Callable[[], bool], within_s: float, tally: Tally) -> None:
    """Each lane to its end; one that does not come to it is told, with what it waits for."""
    tasks = {asyncio.create_task(lane.run(enough)): lane for lane in lanes}
    try:
        _, late = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_EXCEPTION)
        for task in set(tasks) - late:
            task.result()
        tally.unclean += [f"{tasks[task].name}: it has not come to an end: {waiting(task)}" for task in late]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def waiting(task: asyncio.Task[Any]) -> str:
    """Where a task waits, the innermost last."""
    where, coroutine = [], cast(Any, task.get_coro())
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        where.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
        coroutine = coroutine.cr_await
    return " > ".join(where)


def _report(
    wanted: Wanted, seconds: float, faults: Faults, tally: Tally, observer: Observer, left: list[str]
) -> Report:
    jobs, total = tally.jobs, sum(faults.done.values())
    completed = [job for job in jobs if job.state == job_pb2.JOB_STATE_SUCCEEDED]
    causes = because(jobs, UNCLEAN)
    twice, risk = recopied(jobs, tally.kept_bytes, CHECKPOINT_MIB * MIB, _IN_FLIGHT_MIB * MIB)
    unclean = [*tally.unclean, *(f"the suite itself: {each}" for each in faults.defects)]
    missing = [f"{total} faults of {wanted.faults}"] if total < wanted.faults else []
    missing += [f"{len(jobs)} backups of {wanted.jobs}"] if len(jobs) < wanted.jobs else []
    return Report(
        seed=wanted.seed, seconds=round(seconds, 1), faults=dict(sorted(faults.done.items())),
        moments=dict(sorted(tally.moments.items())), jobs=len(jobs), completed=len(completed),
        failed_clean=sum(causes.values()), failed_because=causes, unclean=unclean,
        resumed=sum(bool(job.interruptions) for job in completed), identical=tally.identical,
        not_identical=len(tally.not_identical), differences=tally.not_identical,
        observed=observer.states_read, untrue=observer.wrong, leftovers=len(left), left=left,
        recopied_bytes=twice, at_risk_bytes=risk, recopied_ratio=round(twice / risk, 3) if risk else 0.0,
        missing=missing,
    )  # fmt: skip


async def observe(made: Stage, observer: Observer) -> None:
    """Reads the states of jobs and points, again and again, as an operator's screen would."""
    view = observer.view()
    while True:
        with contextlib.suppress(Away, SendenseError):
            jobs, points = await made.hub.listed(_OBSERVED)
            for job in jobs:
                view.job(job)
            for point in points:
                view.point(point)
        await asyncio.sleep(_OBSERVE_EVERY_S)


def look(made: Stage, point: RestorePoint) -> list[str]:
    """What a point that is said to be complete lacks in the repository."""
    directory = made.repository / point.directory
    files = ["point.json", *(disk.layer_file for disk in point.disks)]
    return [f"{name} is missing" for name in files if not (directory / name).is_file()]


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


async def _run(wanted: Wanted) -> Report:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await play(wanted, say)


def main() -> int:
    """The command."""
    usual = Wanted(0)
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--faults", type=int, default=usual.faults)
    parser.add_argument("--rounds", type=int, default=usual.jobs, help="backups")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="no new backup afterwards")
    options = parser.parse_args()
    wanted = Wanted(options.seed, options.faults, options.rounds, options.seconds)
    say(f"replay with: make chaos SEED={wanted.seed} ROUNDS={wanted.jobs}")
    try:
        report = asyncio.run(_run(wanted))
    except NoRooms as error:
        say(f"make chaos cannot run here: {error}")
        return 2
    except asyncio.CancelledError:
        say("interrupted; nothing is left running")
        return 130
    report.write(ROOT / "build" / "chaos.json")
    for line in report.lines():
        say(line)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
