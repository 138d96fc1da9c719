# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, one function a kind; each heals by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

from tests.chaos.rooms import Link
from tests.chaos.stage import Stage

KILLED = (
    "supervisor", "api", "gateway", "qemu-nbd", "agent", "worker", "mover", "nbdkit", "credentials",
)  # fmt: skip
FROZEN = (*KILLED, "vcenter")
LINKS = (
    "tunnel-cut", "tunnel-slow", "tunnel-reset", "tunnel-delay", "tunnel-bit-flipped",
    "vcenter-link-cut", "vcenter-link-slow",
)  # fmt: skip
VCENTER = (
    "vcenter-restart",
    "session-lost",
    "read-error",
    "read-broken-off",
    "call-refused",
    "snapshot-removed",
)
SLOWED = ("qemu-nbd", "mover", "agent")
"""As on a slow disk at the hub, and on a slow host at the site."""
KINDS = (
    *(f"kill-{each}" for each in KILLED),
    *(f"freeze-{each}" for each in FROZEN),
    *(f"slow-{each}" for each in SLOWED),
    *LINKS,
    *VCENTER,
    "repository-full",
    "state-full",
    "clock-hub",
    "clock-agent",
)
"""All kinds of faults."""

_REFUSED = (
    ("CreateSnapshot_Task", "vim.fault.InvalidState"),
    ("task CreateSnapshot_Task", "vim.fault.GenericVmConfigFault"),
    ("task RemoveSnapshot_Task", "vim.fault.GenericVmConfigFault"),
    ("QueryChangedDiskAreas", "vim.fault.FileFault"),
    ("QueryChangedDiskAreas", "vmodl.fault.SystemError"),
    ("RetrievePropertiesEx", "vmodl.fault.SystemError"),
)
_FOR_A_PROCESS_S = 1.5
_POLL_S = 0.02
_READS_FAIL_FOR_A_WHILE = 0.3
_TWICE = 0.2
"""How often a process that was killed is killed again as soon as there is another."""
_BACK_WITHIN_S = 15.0
_RUN_A_LITTLE = "sleep 0.2; kill -CONT $1; sleep 0.02; kill -STOP $1"
_HOUR_S = 3600
_STEPS_S = (_HOUR_S, -_HOUR_S, 24 * _HOUR_S, -24 * _HOUR_S)


class Faults:
    """Does them, counts them, and sees to it that each ends."""

    def __init__(self, stage: Stage, *, long: float, twice: float = _TWICE) -> None:
        """How long and how often.

        Args:
            stage: where.
            long: share of silences that outlast every keepalive.
            twice: share of killed processes whose successors are killed as soon as they are there.
        """
        self._stage = stage
        self._long, self._twice = long, twice
        self._healing: set[asyncio.Task[None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self.done: Counter[str] = Counter()
        self.defects: list[str] = []
        """Of the suite itself: a fault that did not end as it should."""

    async def inject(self, kind: str, rng: random.Random, vm: str, job_id: str) -> bool:
        """Begins a fault; False when it cannot be had now, as there is no such process.

        Args:
            kind: one of KINDS.
            rng: for how long, and which one.
            vm: whose backup it is meant for.
            job_id: that backup.
        """
        if kind.startswith("kill-"):
            begun = await self._kill(kind.removeprefix("kill-"), rng, job_id)
        elif kind.startswith("freeze-"):
            # The suite itself needs the vCenter's answers.
            seconds = rng.uniform(1, 10) if kind == "freeze-vcenter" else self._silence_s(rng)
            begun = await self._stopped(kind.removeprefix("freeze-"), job_id, f"sleep {seconds:.2f}")
        elif kind.startswith("slow-"):
            slowly = f"for _ in $(seq {rng.randint(10, 30)}); do {_RUN_A_LITTLE}; done"
            begun = await self._stopped(kind.removeprefix("slow-"), job_id, slowly)
        else:
            begun = await self._other(kind, rng, vm)
        if begun:
            self.done[kind] += 1
        return begun

    async def healed(self) -> None:
        """Returns when all is as it was."""
        while self._healing:
            await asyncio.wait(list(self._healing))

    def _silence_s(self, rng: random.Random) -> float:
        return rng.uniform(40, 50) if rng.random() < self._long else rng.uniform(1.0, 6.0)

    # --- processes ---

    async def _kill(self, kind: str, rng: random.Random, job_id: str) -> bool:
        pids = await self._some(kind, job_id)
        if not pids:
            return False
        which = rng.choice(pids)
        before = set(self._stage.processes(job_id)[kind])
        if not _signal(which, signal.SIGKILL):
            return False
        if rng.random() < self._twice:
            self._heal(self._kill_next(kind, job_id, before))
        return True

    async def _kill_next(self, kind: str, job_id: str, before: set[int]) -> None:
        """The one that takes its place, as soon as it is there."""
        deadline = asyncio.get_running_loop().time() + _BACK_WITHIN_S
        while asyncio.get_running_loop().time() < deadline:
            for pid in self._stage.processes(job_id)[kind]:
                if pid not in before and _signal(pid, signal.SIGKILL):
                    self.done[f"kill-{kind}"] += 1
                    return
            await asyncio.sleep(_POLL_S * 5)

    async def _stopped(self, kind: str, job_id: str, script: str) -> bool:
        """Stops one until the script has ended; the script finds its process ID in $1."""
        pids = await self._some(kind, job_id)
        if not pids or not _signal(pids[0], signal.SIGSTOP):
            return False
        # Whoever wakes it must not depend on us: a frozen process hears no SIGTERM.
        waker = await asyncio.create_subprocess_exec(
            "sh", "-c", f"{script}; kill -CONT $1; exit 0", "waker", str(pids[0]),
            stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

        async def woken() -> None:
            await waker.wait()

        self._heal(woken())
        return True

    async def _some(self, kind: str, job_id: str) -> list[int]:
        """Waits a moment for one of this job to be there."""
        deadline = asyncio.get_running_loop().time() + _FOR_A_PROCESS_S
        while not (pids := self._stage.processes(job_id)[kind]):
            if asyncio.get_running_loop().time() > deadline:
                return []
            await asyncio.sleep(_POLL_S)
        return pids

    # --- all the rest ---

    async def _other(self, kind: str, rng: random.Random, vm: str) -> bool:
        stage = self._stage
        match kind:
            case "tunnel-cut":
                await self._for_a_while("tunnel", self._silence_s(rng), _cut(stage.tunnel))
            case "vcenter-link-cut":
                await self._for_a_while("road", self._silence_s(rng), _cut(stage.road))
            case "tunnel-slow":
                await self._for_a_while("tunnel", rng.uniform(2, 5), _slow(stage.tunnel, 8))
            case "vcenter-link-slow":
                await self._for_a_while("road", rng.uniform(2, 5), _slow(stage.road, 8))
            case "tunnel-reset":
                await stage.order("hub", "reset")
            case "tunnel-bit-flipped":
                await stage.order("hub", "flip")
            case "tunnel-delay":
                await self._for_a_while("relay", rng.uniform(3, 6), self._delayed(rng.uniform(0.1, 0.4)))
            case "vcenter-restart":
                await self._for_a_while("vcenter", rng.uniform(2, 8), self._vcenter_away())
            case "session-lost":
                await stage.lab("expire_sessions")
            case "read-error" | "read-broken-off":
                fault = "500" if kind == "read-error" else "drop"
                if rng.random() < _READS_FAIL_FOR_A_WHILE:
                    await self._for_a_while("reads", rng.uniform(2, 5), self._reads_fail(fault))
                else:
                    times = rng.choice((1, 3))
                    await stage.lab("inject_fault", operation="GET /folder", fault=fault, times=times)
            case "call-refused":
                operation, fault = rng.choice(_REFUSED)
                await stage.lab("inject_fault", operation=operation, fault=fault)
            case "snapshot-removed":
                if not (await stage.lab("state", vm=vm))["snapshots"]:
                    return False
                await stage.lab("remove_snapshots", vm=vm)
            case "repository-full":
                await self._for_a_while("repository", rng.uniform(1.5, 5), _full(stage.repository))
            case "state-full":
                await self._for_a_while("state", rng.uniform(1.5, 5), _full(stage.state))
            case "clock-hub" | "clock-agent":
                room = kind.removeprefix("clock-")
                stepped = _stepped(stage.clock(room), rng.choice(_STEPS_S))
                await self._for_a_while(kind, rng.uniform(3, 8), stepped)
            case _:
                raise ValueError(f"there is no fault {kind}")
        return True

    async def _for_a_while(
        self, resource: str, seconds: float, fault: contextlib.AbstractAsyncContextManager[None]
    ) -> None:
        """Returns when the fault is there; one at a time of those that use the same."""
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def last() -> None:
            try:
                async with self._locks.setdefault(resource, asyncio.Lock()), fault:
                    begun.set_result(None)
                    await asyncio.sleep(seconds)
            except Exception as error:
                if begun.done():
                    raise
                begun.set_exception(error)  # there was no fault, and nobody waits for it

        self._heal(last())
        await begun

    @contextlib.asynccontextmanager
    async def _delayed(self, seconds: float) -> AsyncIterator[None]:
        await self._stage.order("hub", "delay", seconds=seconds)
        try:
            yield
        finally:
            await self._stage.order("hub", "delay", seconds=0)

    @contextlib.asynccontextmanager
    async def _vcenter_away(self) -> AsyncIterator[None]:
        """As when its service is restarted: no connection, afterwards no session; the ESXi hosts go on."""
        await self._stage.order("vcenter", "refuse")
        try:
            await self._stage.lab("expire_sessions")
            yield
        finally:
            await self._stage.order("vcenter", "pass")

    @contextlib.asynccontextmanager
    async def _reads_fail(self, fault: str) -> AsyncIterator[None]:
        await self._stage.lab("inject_fault", operation="GET /folder", fault=fault, times=1_000_000)
        try:
            yield
        finally:
            await self._stage.lab("clear_faults")

    def _heal(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._healing.add(task)
        task.add_done_callback(self._done_healing)

    def _done_healing(self, task: asyncio.Task[None]) -> None:
        self._healing.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self.defects.append(f"{type(error).__name__}: {error}")


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _fill(path: os.PathLike[str]) -> None:
    """Until nothing more goes in; that may be so before."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:  # noqa: PTH123
        for size in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
            block = bytes(size)
            with contextlib.suppress(OSError):
                while file.write(block) == size:
                    pass


@contextlib.asynccontextmanager
async def _full(directory: Path) -> AsyncIterator[None]:
    filler = directory / "filler"
    try:
        await asyncio.to_thread(_fill, filler)
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _stepped(clock: Path, seconds: int) -> AsyncIterator[None]:
    clock.write_text(f"{seconds:+d}\n")
    try:
        yield
    finally:
        clock.write_text("+0\n")


@contextlib.asynccontextmanager
async def _cut(link: Link) -> AsyncIterator[None]:
    await link.cut()
    try:
        yield
    finally:
        await link.mend()


@contextlib.asynccontextmanager
async def _slow(link: Link, mbit: int) -> AsyncIterator[None]:
    await link.speed(mbit)
    try:
        yield
    finally:
        await link.usual_speed()
