# SPDX-License-Identifier: Apache-2.0
"""`make bench`, second part: what a tunnel that is cut for a minute costs a transfer of 4 GiB, and flushing.

Through the whole system in network namespaces (tests/chaos). The same disk is backed up in full twice: once
in peace, once with the tunnel cut in the middle. Prints both, writes build/bench-interruption.json, and fails
when the cut costs more than its own length and 10 s, or when the transfer waits for flushes more than 2 % of
its time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.moments import Progress, reached
from tests.chaos.rooms import NoRooms
from tests.chaos.stage import Stage, stage
from tests.e2e.kit import GIB, MIB, same_bytes

from sendense.hub.v1 import job_pb2
from sendense.hub.v1.job_pb2 import Job

ROOT = Path(__file__).resolve().parents[2]
CUT_S, MAY_COST_MORE_S, FLUSHES_MAY_TAKE = 60.0, 10.0, 0.02
_VM, _SIZE_BYTES, _PIECE_BYTES = "big", 4 * GIB, 16 * MIB
_TUNNEL_MBIT = 640
_WITHIN_S = 900.0


@dataclass
class Transfer:
    """One full backup."""

    seconds: float
    copied_bytes: int
    recopied_bytes: int
    attempts: int
    flush_s: float
    """Of all attempts that came to their end."""
    flush_share: float
    """Of the time of the copy, which goes on meanwhile: a flush stands behind the writes in the tunnel."""
    waited_share: float
    """Of the same time, how long there was nothing but flushes."""


async def back_up(made: Stage, *, cut_s: float) -> Transfer:
    """A full backup, compared; the tunnel is cut once half of it is read."""
    began = time.monotonic()
    job = await made.hub.start_backup(_VM, full=True)
    now = Progress(made, _VM, job.vm_instance_uuid, job)
    cutting = asyncio.create_task(_cut(made, now, cut_s))
    try:
        async with asyncio.timeout(_WITHIN_S):
            job = await _ended(made, now)
    finally:
        cutting.cancel()
        await asyncio.gather(cutting, return_exceptions=True)
    seconds = time.monotonic() - began
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        raise AssertionError(f"the backup failed: {job.failure.message}")
    await _compared(made, job)
    flush_s, waited_s, copy_s = await _flushes(made, job)
    (disk,) = job.disks
    return Transfer(
        round(seconds, 1), disk.copied_bytes, disk.recopied_bytes, job.attempt,
        round(flush_s, 2), round(flush_s / copy_s, 4), round(waited_s / copy_s, 4),
    )  # fmt: skip


async def _ended(made: Stage, now: Progress) -> Job:
    while not now.ended:
        async for seen in made.hub.watch(now.job.job_id):
            now.job = seen
            now.changed.set()
        await asyncio.sleep(0.2)
    return now.job


async def _cut(made: Stage, now: Progress, seconds: float) -> None:
    if seconds and await reached("half", now, marks_before=0):
        say(f"the tunnel is cut for {seconds:.0f} s")
        await made.tunnel.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            await made.tunnel.mend()


async def _compared(made: Stage, job: Job) -> None:
    (frozen,) = made.frozen(_VM).glob(f"snapshot-*-{job.disks[0].key}.raw")
    exported = await made.hub.export(job.point_id, job.disks[0].key, made.exports)
    if not await asyncio.to_thread(same_bytes, exported, frozen):
        raise AssertionError("the export differs from what the snapshot held")
    exported.unlink()
    frozen.unlink()
    await made.hub.delete(job.point_id)


async def _flushes(made: Stage, job: Job) -> tuple[float, float, float]:
    """(seconds of flushes, of nothing but flushes, of copying) of the movers that came to their end."""
    spans: list[dict[str, Any]] = json.loads(await made.command("job", "trace", job.job_id, "--json"))[
        "spans"
    ]
    flush_s = waited_s = copy_s = 0.0
    for span in spans:
        if "flush_ms" in span.get("attributes", {}):
            flush_s += int(span["attributes"]["flush_ms"]) / 1000
            waited_s += int(span["attributes"]["waited_for_flush_ms"]) / 1000
            copy_s += float(span["duration"].removesuffix("s"))
    return flush_s, waited_s, copy_s


async def run() -> dict[str, Transfer]:
    """Both."""
    logs = ROOT / "build" / "bench-logs"
    async with stage(logs, repository_mib=0, tunnel_mbit=_TUNNEL_MBIT, checkpoints=()) as made:
        vm = await made.lab("add_vm", name=_VM, disks=[{"capacity_bytes": _SIZE_BYTES}])
        made.frozen(_VM).mkdir(parents=True)
        await made.lab("hold_frozen", vm=_VM, directory=str(made.frozen(_VM)))
        for offset in range(0, _SIZE_BYTES, _PIECE_BYTES):
            await made.lab(
                "guest_fill", vm=_VM, disk=vm["disks"][0], offset_bytes=offset, length_bytes=_PIECE_BYTES
            )
        found = {}
        for name, cut_s in {"in peace": 0.0, "with a cut": CUT_S}.items():
            found[name] = await back_up(made, cut_s=cut_s)
            say(f"{name}: {found[name]}")
        return found


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Measures, prints, judges."""
    try:
        found = asyncio.run(run())
    except NoRooms as error:
        say(f"an interruption cannot be measured here: {error}")
        return 2
    peace, cut = found["in peace"], found["with a cut"]
    cost_s = cut.seconds - peace.seconds
    values = {name: asdict(each) for name, each in found.items()}
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "bench-interruption.json").write_text(
        json.dumps({**values, "cut_s": CUT_S, "cost_s": round(cost_s, 1)}, indent=1) + "\n"
    )
    say(
        f"\nA cut of {CUT_S:.0f} s costs {cost_s:.1f} s and {cut.recopied_bytes / MIB:.0f} MiB that are "
        f"copied twice. The transfer waited for flushes {peace.waited_share:.2%} of its time; while "
        f"{peace.flush_share:.2%} of it one was on its way."
    )
    good = cost_s < CUT_S + MAY_COST_MORE_S and peace.waited_share <= FLUSHES_MAY_TAKE
    return 0 if good else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
