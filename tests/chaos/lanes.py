# SPDX-License-Identifier: Apache-2.0
"""One VM under fire: its guest writes, it is backed up, things go wrong, each complete point is compared."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.chaos.faults import KINDS, Faults
from tests.chaos.hub import Away
from tests.chaos.moments import MOMENTS, Progress, reached
from tests.chaos.observer import Observer
from tests.chaos.stage import Stage
from tests.e2e.kit import MIB, same_bytes

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2
from sendense.hub.v1.job_pb2 import Job
from sendense_common.errors import SendenseError
from sendense_hub.repository import ledger
from sendense_lab.client import LabError

_ENDS_WITHIN_S = 330.0
_CONNECTS_WITHIN_S = 120.0
_LOOKS_S = 20.0
_FULL_SHARE = 0.25
_CHAINS = 2
_LONGEST_CHAIN = 5
UNCLEAN = {Reason.REASON_UNSPECIFIED, Reason.REASON_INTERNAL}


class Deck:
    """Deals all of some names in a random order, then all again."""

    def __init__(self, names: tuple[str, ...], rng: random.Random) -> None:
        self._names, self._rng = names, rng
        self._left: list[str] = []

    def deal(self) -> str:
        """The next one."""
        if not self._left:
            self._left = list(self._names)
            self._rng.shuffle(self._left)
        return self._left.pop()

    def put_back(self, name: str) -> None:
        """It was not used."""
        self._left.insert(0, name)


class Dealer(Protocol):
    """What goes wrong, and when."""

    def planned(self, rng: random.Random) -> list[tuple[str, str]]:
        """(moment, kind) for one backup, in the order of moments."""

    def unused(self, kind: str, moment: str, *, reached: bool) -> str:
        """It had no occasion; another kind that shall use the moment, or nothing."""


class Decks:
    """Every kind of fault and every moment comes by and by."""

    def __init__(self, seed: int, faults_per_job: float) -> None:
        self._kinds = Deck(KINDS, random.Random(f"{seed} kinds"))
        self._moments = Deck(tuple(MOMENTS), random.Random(f"{seed} moments"))
        self._faults_per_job = faults_per_job

    def planned(self, rng: random.Random) -> list[tuple[str, str]]:
        """See `Dealer`."""
        count = int(self._faults_per_job) + (rng.random() < self._faults_per_job % 1)
        order = list(MOMENTS)
        dealt = ((self._moments.deal(), self._kinds.deal()) for _ in range(count))
        return sorted(dealt, key=lambda each: order.index(each[0]))

    def unused(self, kind: str, moment: str, *, reached: bool) -> str:
        """See `Dealer`."""
        self._kinds.put_back(kind)
        return self._kinds.deal() if reached else ""


@dataclass
class Tally:
    """What came of it, over all VMs."""

    jobs: list[Job] = field(default_factory=list)
    identical: int = 0
    not_identical: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)
    moments: Counter[str] = field(default_factory=Counter)
    kept_bytes: dict[str, int] = field(default_factory=dict)
    """Data that the ledgers of complete points have, by job."""


@dataclass
class Kept:
    """A complete point and what it must hold."""

    point_id: str
    disks: dict[int, Path]
    full: bool


class Lane:
    """One VM; `run` plays it."""

    def __init__(
        self, stage: Stage, faults: Faults, observer: Observer, tally: Tally, dealer: Dealer,
        *, name: str, sizes: list[int], seed: str, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._stage, self._faults, self._observer, self._tally = stage, faults, observer, tally
        self._dealer = dealer
        self.name = name
        self._sizes = sizes
        self._rng = random.Random(seed)
        self._say = say
        self._disks: dict[int, int] = {}
        self._uuid = ""
        self._round = 0
        self.kept: list[Kept] = []

    async def run(self, enough: Callable[[], bool]) -> None:
        """Backups until it is enough."""
        await self._create()
        while not enough():
            self._round += 1
            await self._one_round()

    async def _create(self) -> None:
        disks = [{"capacity_bytes": size} for size in self._sizes]
        made = await self._stage.lab("add_vm", name=self.name, disks=disks)
        self._uuid = made["instance_uuid"]
        self._disks = dict(zip(made["disks"], self._sizes, strict=True))
        self._stage.frozen(self.name).mkdir(parents=True)
        await self._stage.lab("hold_frozen", vm=self.name, directory=str(self._stage.frozen(self.name)))
        for key, size in self._disks.items():
            for offset in range(0, size * 3 // 4, 4 * MIB):
                length = min(4 * MIB, size - offset)
                await self._guest("guest_fill", key, offset, length, seed=f"{self.name} at first")

    async def _guest(self, command: str, disk: int, offset: int, length: int, **more: str) -> None:
        await self._stage.lab(
            command, vm=self.name, disk=disk, offset_bytes=offset, length_bytes=length, **more
        )

    async def _write(self, count: int) -> None:
        """The guest works."""
        for _ in range(count):
            key = self._rng.choice(sorted(self._disks))
            size = self._disks[key]
            length = self._rng.choice((512, 64 << 10, MIB, 4 * MIB))
            offset = self._rng.randrange(0, (size - length) // 512) * 512
            if self._rng.random() < 0.2:
                await self._guest("guest_zero", key, offset, length)
            else:
                seed = str(self._rng.getrandbits(32))
                await self._guest("guest_fill", key, offset, length, seed=seed)

    async def _one_round(self) -> None:
        rng = self._rng
        await self._write(rng.randint(2, 8))
        try:
            await self._stage.until_connected(_CONNECTS_WITHIN_S)
        except TimeoutError:
            self._unclean(f"the agent has not connected again within {_CONNECTS_WITHIN_S:.0f} s")
        chain = [each.full for each in reversed(self.kept)]
        full = not chain or rng.random() < _FULL_SHARE or True not in chain[:_LONGEST_CHAIN]
        planned = self._dealer.planned(rng)
        marks = len(list(self._stage.repository.glob(f"*/{self._uuid}/*/point.json")))
        try:
            begun = await self._stage.hub.start_backup(self._uuid, full=full)
        except (Away, SendenseError) as error:
            self._unclean(f"{self.name}: a backup cannot be started: {error}")
            await asyncio.sleep(2)
            return
        now = Progress(self._stage, self.name, self._uuid, begun)
        told = f"{self.name} {self._round} job {begun.job_id[:8]} {'full' if full else 'auto'}"
        self._say(f"{told}: {', '.join(f'{kind} at {moment!r}' for moment, kind in planned)}")
        trouble = asyncio.create_task(self._trouble(now, planned, marks))
        writing = asyncio.create_task(self._write_meanwhile(now))
        try:
            job = await self._follow(now)
        finally:
            now.changed.set()
            writing.cancel()
            await asyncio.gather(trouble, writing, return_exceptions=True)
            if not trouble.cancelled() and (defect := trouble.exception()):
                self._unclean(f"the suite itself failed: {type(defect).__name__}: {defect}")
        await self._take(job, full, told)

    async def _write_meanwhile(self, now: Progress) -> None:
        while not now.ended:
            await asyncio.sleep(self._rng.uniform(0.3, 1.5))
            with contextlib.suppress(LabError, OSError, TimeoutError):
                await self._write(1)

    async def _trouble(self, now: Progress, planned: list[tuple[str, str]], marks: int) -> None:
        """Each fault at its moment; what has no occasion goes back into the deck."""
        rng = random.Random(self._rng.random())
        for moment, kind in planned:
            there = await reached(moment, now, marks_before=marks)
            if there:
                await asyncio.sleep(rng.choice((0.0, 0.0, rng.uniform(0, 0.3))))
            chosen = kind
            if not there or not await self._faults.inject(kind, rng, self.name, now.job.job_id):
                chosen = self._dealer.unused(kind, moment, reached=there)
                if not chosen:
                    continue
                if not await self._faults.inject(chosen, rng, self.name, now.job.job_id):
                    self._dealer.unused(chosen, moment, reached=False)
                    continue
            self._tally.moments[moment] += 1
            self._say(f"    {self.name}: {chosen} at {moment!r}")

    async def _follow(self, now: Progress) -> Job:
        """Until the job has ended; all that is told of it is looked at."""
        view = self._observer.view()
        deadline = asyncio.get_running_loop().time() + _ENDS_WITHIN_S
        watching: asyncio.Task[None] | None = None

        async def watch() -> None:
            async for seen in self._stage.hub.watch(now.job.job_id):
                take(seen)

        def take(seen: Job) -> None:
            view.job(seen)
            now.job = seen
            now.changed.set()

        try:
            while not now.ended and asyncio.get_running_loop().time() < deadline:
                if watching is None or watching.done():
                    with contextlib.suppress(Away, SendenseError):
                        take(await self._stage.hub.job(now.job.job_id))
                    watching = asyncio.create_task(watch())
                await asyncio.wait({watching}, timeout=1.0)
        finally:
            if watching is not None:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        return now.job

    # --- what came of it ---

    async def _take(self, job: Job, full: bool, told: str) -> None:
        self._tally.jobs.append(job)
        state = job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
        reason = Reason.Name(job.failure.reason).removeprefix("REASON_") if job.failure.reason else ""
        self._say(f"{told}: {state} {reason} in attempt {job.attempt}")
        match job.state:
            case job_pb2.JOB_STATE_SUCCEEDED:
                await self._take_point(job, full)
            case job_pb2.JOB_STATE_FAILED:
                if job.failure.reason in UNCLEAN or not job.failure.message:
                    self._unclean(f"{told} failed without a cause: {reason} {job.failure.message}")
                # Who sees a failure looks for its cause before he tries again.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOKS_S):
                        await self._faults.healed()
            case _:
                self._unclean(f"{told} has not ended within {_ENDS_WITHIN_S:.0f} s: {state}")
        for file in self._stage.frozen(self.name).glob("snapshot-*.raw"):
            file.unlink()

    async def _take_point(self, job: Job, full: bool) -> None:
        self._tally.kept_bytes[job.job_id] = self._data_bytes(job.point_id)
        kept = Kept(job.point_id, {}, full=full or all(disk.mode == "full" for disk in job.disks))
        for key in self._disks:
            snapshots = sorted(
                self._stage.frozen(self.name).glob(f"snapshot-*-{key}.raw"),
                key=lambda path: -int(path.name.split("-")[1]),
            )
            if not snapshots:
                self._tally.not_identical.append(f"point {job.point_id} has disk {key} without a snapshot")
                return
            kept.disks[key] = snapshots[0].rename(self._stage.frozen(self.name) / f"{job.point_id}-{key}.raw")
            if not await self.compare(kept.point_id, key, kept.disks[key], snapshots[1:]):
                return
        self._tally.identical += 1
        self.kept.append(kept)
        await self._prune()

    def _data_bytes(self, point_id: str) -> int:
        """Of the layers of a point, by their ledgers; what was written twice counts once."""
        total = 0
        for file in self._stage.repository.glob(f"*/{self._uuid}/{point_id}/*.ledger"):
            end = 0
            for record in sorted(ledger.read(file), key=lambda each: each.offset_bytes):
                if record.sha256:
                    total += max(0, record.end - max(end, record.offset_bytes))
                    end = max(end, record.end)
        return total

    async def compare(self, point_id: str, key: int, frozen: Path, older: list[Path]) -> bool:
        """Whether the export of one disk is what the snapshot held, byte for byte."""
        try:
            exported = await self._stage.hub.export(point_id, key, self._stage.exports)
        except (Away, SendenseError) as error:
            self._tally.not_identical.append(f"point {point_id}, disk {key} cannot be exported: {error}")
            return False
        try:
            if await asyncio.to_thread(same_bytes, exported, frozen):
                return True
            also = [each.name for each in older if same_bytes(exported, each)]
            what = f"it is what {also} held" if also else "it is what no snapshot of this job held"
            self._tally.not_identical.append(f"point {point_id} of {self.name}, disk {key} differs: {what}")
            return False
        finally:
            exported.unlink()

    async def compare_all(self) -> None:
        """Once more, at the end: no later run has touched an earlier point."""
        for kept in self.kept:
            for key, frozen in kept.disks.items():
                await self.compare(kept.point_id, key, frozen, [])

    async def _prune(self) -> None:
        """Deletes the oldest chain when there are too many."""
        starts = [number for number, each in enumerate(self.kept) if each.full]
        if len(starts) <= _CHAINS:
            return
        gone, self.kept = self.kept[: starts[1]], self.kept[starts[1] :]
        for each in reversed(gone):
            try:
                await self._stage.hub.delete(each.point_id)
            except (Away, SendenseError) as error:
                self._unclean(f"point {each.point_id} of {self.name} cannot be deleted: {error}")
            for file in each.disks.values():
                file.unlink()

    def _unclean(self, what: str) -> None:
        self._say(f"!!! {what}")
        self._tally.unclean.append(what)
