# SPDX-License-Identifier: Apache-2.0
"""`make bench`: what a backup of a big sparse disk costs against a small one with the same data.

Through the whole system, with the simulated vCenter. Prints a table and writes build/bench.json. It asserts
nothing about time: machines differ. That the restore is right is checked each time, by extents.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.kit import GIB, MIB, PASSWORD, USER, Lab, World, data, world

TIB = 1 << 40
ODD_TAIL_BYTES = 512
EXTENTS, EXTENT_BYTES = 100, 3 * MIB
CHANGED_EXTENTS = 16
ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_RUNS, _IDLE_RUNS = 3, 4


@dataclass
class Cost:
    """Of one backup."""

    what: str
    capacity_bytes: int
    wall_s: float
    cpu_s: float
    """Of all processes of the product, hub and site."""
    memory_bytes: dict[str, int]
    """The most that one process of a kind had."""
    read_bytes: int
    copied_bytes: int
    layer_bytes: int
    repository_bytes: int
    """What it added: layer, ledger, point.json."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds by span of the job's trace."""


def places(capacity_bytes: int) -> list[int]:
    """Where the data is: all over the disk, and at its very end."""
    step = (capacity_bytes - EXTENT_BYTES) // (EXTENTS - 1)
    return [number * step // 512 * 512 for number in range(EXTENTS - 1)] + [capacity_bytes - EXTENT_BYTES]


def fill(lab: Lab, vm: str, disk: int, capacity_bytes: int) -> None:
    """300 MiB that do not compress."""
    for number, place in enumerate(places(capacity_bytes)):
        lab.command(
            "guest_fill", vm=vm, disk=disk, offset_bytes=place, length_bytes=EXTENT_BYTES, seed=str(number)
        )


def change(lab: Lab, vm: str, disk: int, capacity_bytes: int) -> None:
    """Some of it again, and the last sector."""
    for place in places(capacity_bytes)[:CHANGED_EXTENTS]:
        lab.write(vm, disk, place, data(MIB, f"new {place}"))
    lab.write(vm, disk, capacity_bytes - 512, data(512, "new tail"))


def same_by_extents(layer: Path, frozen: Path, capacity_bytes: int) -> bool:
    """Whether a layer with its chain holds what the frozen disk held; what both call a hole is not read."""
    size = int.from_bytes(_head(layer)[24:32])
    compared = subprocess.run(
        ["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(layer), str(frozen)], check=False
    )
    return size == frozen.stat().st_size == capacity_bytes and compared.returncode == 0


def layer_of(running: World, job: dict[str, Any], disk: int) -> Path:
    """Of a job's point."""
    (path,) = running.repository.glob(f"*/*/{job['point_id']}/disk-{disk}.qcow2")
    return path


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


class Meter:
    """CPU time and memory of a tree of processes."""

    def __init__(self, root: int) -> None:
        self._root = root
        self.peaks: dict[str, int] = {}

    def cpu_s(self) -> float:
        """So far, with children that have ended."""
        return sum(sum(map(int, stat[11:15])) for _, stat in self._tree()) / _TICKS

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notes the most memory while the block runs."""
        self.peaks = {}
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.05):
                for pid, stat in self._tree():
                    name = _name(pid)
                    self.peaks[name] = max(self.peaks.get(name, 0), int(stat[21]) * _PAGE_BYTES)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _tree(self) -> list[tuple[int, list[str]]]:
        found: dict[int, list[str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                found[int(path.parent.name)] = path.read_text().rpartition(") ")[2].split()
        inside = {self._root}
        while more := {pid for pid, stat in found.items() if int(stat[1]) in inside} - inside:
            inside |= more
        return [(pid, found[pid]) for pid in inside if pid in found]


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "gone"
    if "-m" in words:
        return words[words.index("-m") + 1].removesuffix(".__main__")
    return Path(words[0]).name


def measure(running: World, lab: Lab, meter: Meter, what: str, vm: str, capacity: int, *options: str) -> Cost:
    """One backup, checked."""
    before = _used(running.repository)
    with meter.watching():
        cpu, began = meter.cpu_s(), time.monotonic()
        job = running.back_up(vm, *options)
        wall, used = time.monotonic() - began, meter.cpu_s() - cpu
    (disk,) = job["disks"]
    layer = layer_of(running, job, disk["key"])
    if not same_by_extents(layer, lab.newest_frozen(vm, disk["key"]), capacity):
        raise AssertionError(f"{what}: the restore differs")
    lab.newest_frozen(vm, disk["key"]).unlink()
    return Cost(
        what=what, capacity_bytes=capacity, wall_s=round(wall, 2), cpu_s=round(used, 2),
        memory_bytes={name: size for name, size in meter.peaks.items() if name not in {"gone", ""}},
        read_bytes=int(disk["read_bytes"]), copied_bytes=int(disk["copied_bytes"]),
        layer_bytes=layer.stat().st_blocks * 512, repository_bytes=_used(running.repository) - before,
        phases=_phases(running, job["job_id"]),
    )  # fmt: skip


def _used(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


def _phases(running: World, job_id: str) -> dict[str, float]:
    """The trace's longest spans, in seconds; nothing if there is none."""
    done = running.run("job", "trace", job_id, "--json")
    if done.returncode:
        return {}
    spans: dict[str, float] = {}
    for span in json.loads(done.stdout).get("spans", []):
        duration = float(str(span.get("duration", "0s")).removesuffix("s") or 0)
        spans[span["name"]] = round(max(duration, spans.get(span["name"], 0.0)), 3)
    return dict(sorted(spans.items(), key=lambda each: -each[1])[:12])


def run(directory: Path, lab_directory: Path) -> list[Cost]:
    """All measurements."""
    costs: list[Cost] = []
    with world(directory, options=("--cbt-audit-percent", "0")) as running:
        lab = running.lab("bench")
        assert running.up is not None
        meter = Meter(running.up.pid)
        sizes = {"small": 5 * GIB + ODD_TAIL_BYTES, "big": 5 * TIB + ODD_TAIL_BYTES}
        disks = {name: lab.add_vm(name, [capacity]).disks[0] for name, capacity in sizes.items()}
        for name, capacity in sizes.items():
            fill(lab, name, disks[name], capacity)
        runs: dict[str, list[Cost]] = {}
        for _ in range(_RUNS):  # in turn, so that what else the machine does meets both
            for name, capacity in sizes.items():
                what = f"{name} full"
                cost = measure(running, lab, meter, what, name, capacity, "--mode", "full")
                runs.setdefault(what, []).append(cost)
            for name, capacity in sizes.items():
                change(lab, name, disks[name], capacity)
                what = f"{name} incremental"
                runs.setdefault(what, []).append(measure(running, lab, meter, what, name, capacity))
        costs += [best(each) for each in runs.values()]
        lab.command("set", used_areas=False)
        capacity = 5 * GIB + ODD_TAIL_BYTES
        costs.append(
            measure(running, lab, meter, "small full without *", "small", capacity, "--mode", "full")
        )
        lab.command("set", used_areas=True)
        costs += idle(running, meter, lab_directory)
    return costs


def idle(running: World, meter: Meter, lab_directory: Path) -> list[Cost]:
    """Incrementals without a change of 1 GiB and of 62 TiB, in turn."""
    lab = Lab(lab_directory / "idle", "idle")
    running.labs.append(lab)
    running.ask("vcenter", "add", "idle", "--address", lab.address, "--username", USER,
                "--password-stdin", "--ca-file", str(lab.ca_file), secret=PASSWORD + "\n")  # fmt: skip
    sizes = {"1 GiB": GIB, "62 TiB": 62 * TIB}
    for name, capacity in sizes.items():
        vm = name.replace(" ", "")
        (disk,) = lab.add_vm(vm, [capacity]).disks
        lab.write(vm, disk, 0, data(MIB, "once"))
        lab.write(vm, disk, capacity - MIB, data(MIB, "at the end"))
        measure(running, lab, meter, "first", vm, capacity)
    costs: dict[str, list[Cost]] = {name: [] for name in sizes}
    for _ in range(_IDLE_RUNS):
        for name, capacity in sizes.items():
            vm = name.replace(" ", "")
            costs[name].append(measure(running, lab, meter, f"{name} unchanged", vm, capacity))
    return [best(runs) for runs in costs.values()]


def best(runs: list[Cost]) -> Cost:
    """The quickest: what disturbs makes slower, never quicker."""
    return min(runs, key=lambda each: each.wall_s)


def main() -> int:
    """Prints the table."""
    directory = Path(tempfile.mkdtemp(prefix="sd-bench-", dir="/tmp"))
    # 62 TiB in one sparse file is more than ext4 takes.
    elsewhere = Path(tempfile.mkdtemp(prefix="sd-bench-", dir="/dev/shm"))
    try:
        costs = run(directory, elsewhere)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(elsewhere, ignore_errors=True)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "bench.json").write_text(json.dumps([asdict(each) for each in costs], indent=1) + "\n")
    sys.stdout.write("\n".join(table(costs)) + "\n")
    return 0


def table(costs: list[Cost]) -> list[str]:
    """For people, in Markdown."""
    lines = [
        "| Backup | time | CPU | most memory of one process | read | layer | repository |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in costs:
        name, most = max(each.memory_bytes.items(), key=lambda item: item[1])
        lines.append(
            f"| {each.what} | {each.wall_s:.1f} s | {each.cpu_s:.1f} s | {most / MIB:.0f} MiB ({name}) "
            f"| {each.read_bytes / MIB:.0f} MiB | {each.layer_bytes / MIB:.1f} MiB "
            f"| {each.repository_bytes / MIB:.0f} MiB |"
        )
    by_name = {each.what: each for each in costs}
    for kind in ("full", "incremental"):
        big, small = by_name[f"big {kind}"], by_name[f"small {kind}"]
        lines.append(
            f"\n{kind}: big / small = {big.wall_s / small.wall_s:.2f} in time, "
            f"{big.cpu_s / small.cpu_s:.2f} in CPU, {big.layer_bytes / small.layer_bytes:.2f} in the layer"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
