# SPDX-License-Identifier: Apache-2.0
"""A virtual disk as ESXi keeps it: a base file, delta files on top, and a map of what changed since when.

The base file holds the bytes themselves; a delta holds the 64 KiB granules written since its snapshot.
While a snapshot exists, the base file does not change: that is what a backup reads.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

GRANULE_BYTES = 64 * 1024
SECTOR_BYTES = 512

_DESCRIPTOR = """# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
createType="vmfs"

# Extent description
RW {sectors} VMFS "{extent}"

# The Disk Data Base
ddb.adapterType = "lsilogic"
ddb.thinProvisioned = "1"
"""


class Delta:
    """What was written since a snapshot."""

    def __init__(self, file: Path, capacity_bytes: int) -> None:
        self.file = file
        self.granules: set[int] = set()
        with file.open("wb") as made:
            made.truncate(capacity_bytes)


class DiskFiles:
    """Base and deltas of one disk. Not locked: the caller is."""

    def __init__(self, directory: Path, name: str, capacity_bytes: int) -> None:
        """Makes an empty disk `<name>.vmdk` with its extent `<name>-flat.vmdk`."""
        _check_capacity(capacity_bytes)
        self.directory = directory
        self.name = name
        self.capacity_bytes = capacity_bytes
        self.base = directory / f"{name}-flat.vmdk"
        self.deltas: list[Delta] = []
        self.epoch = 0
        """Number of the newest snapshot that change tracking knows."""
        self.written_in: dict[int, int] = {}
        """By granule: the epoch in which it was last written."""
        directory.mkdir(parents=True, exist_ok=True)
        with self.base.open("wb") as made:
            made.truncate(capacity_bytes)
        self._describe()

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """As the guest sees it now."""
        data = bytearray()
        end = min(offset_bytes + length_bytes, self.capacity_bytes)
        while offset_bytes < end:
            granule = offset_bytes // GRANULE_BYTES
            length = min((granule + 1) * GRANULE_BYTES, end) - offset_bytes
            with self._newest(granule).open("rb") as file:
                file.seek(offset_bytes)
                data += file.read(length).ljust(length, b"\0")
            offset_bytes += length
        return bytes(data)

    def write(self, offset_bytes: int, data: bytes) -> None:
        """As the guest; ValueError beyond the end."""
        if offset_bytes < 0 or offset_bytes + len(data) > self.capacity_bytes:
            raise ValueError("the guest writes beyond the end of its disk")
        position = 0
        top = self.deltas[-1] if self.deltas else None
        with (top.file if top else self.base).open("r+b") as file:
            while position < len(data):
                granule = (offset_bytes + position) // GRANULE_BYTES
                start = granule * GRANULE_BYTES
                length = min(start + GRANULE_BYTES - offset_bytes - position, len(data) - position)
                if top is not None and granule not in top.granules:
                    file.seek(start)
                    file.write(self.read(start, GRANULE_BYTES))
                    top.granules.add(granule)
                file.seek(offset_bytes + position)
                file.write(data[position : position + length])
                self.written_in[granule] = self.epoch
                position += length

    def allocated(self) -> set[int]:
        """Granules that hold data, in any file."""
        found = set().union(*(delta.granules for delta in self.deltas))
        descriptor = os.open(self.base, os.O_RDONLY)
        try:
            offset = 0
            while offset < self.capacity_bytes:
                try:
                    start = os.lseek(descriptor, offset, os.SEEK_DATA)
                except OSError:  # ENXIO: only a hole is left
                    break
                offset = os.lseek(descriptor, start, os.SEEK_HOLE)
                found.update(range(start // GRANULE_BYTES, -(-offset // GRANULE_BYTES)))
        finally:
            os.close(descriptor)
        return found

    def push(self, number: int) -> None:
        """A snapshot: from now on the guest writes to a new delta file."""
        self.deltas.append(
            Delta(self.directory / f"{self.name}-{number:06d}-delta.vmdk", self.capacity_bytes)
        )

    def pop(self, index: int) -> None:
        """Removes a snapshot: its delta is merged into what is below it."""
        delta = self.deltas.pop(index)
        below = self.deltas[index - 1] if index else None
        with delta.file.open("rb") as source, (below.file if below else self.base).open("r+b") as target:
            for granule in sorted(delta.granules):
                source.seek(granule * GRANULE_BYTES)
                target.seek(granule * GRANULE_BYTES)
                target.write(source.read(GRANULE_BYTES))
        if below is not None:
            below.granules |= delta.granules
        delta.file.unlink()

    def move(self, directory: Path) -> None:
        """All its files go to another directory, under the same names."""
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = self.directory / f"{self.name}.vmdk"
        for file in (descriptor, self.base, *(delta.file for delta in self.deltas)):
            file.replace(directory / file.name)
        self.directory, self.base = directory, directory / self.base.name
        for delta in self.deltas:
            delta.file = directory / delta.file.name

    def trim(self, offset_bytes: int, length_bytes: int) -> None:
        """The guest gives space back: whole granules become holes, and count as written."""
        if self.deltas:
            raise ValueError("the lab trims no disks with snapshots")
        first = -(-offset_bytes // GRANULE_BYTES)
        last = min(offset_bytes + length_bytes, self.capacity_bytes) // GRANULE_BYTES
        if first < last:
            place = ["--offset", str(first * GRANULE_BYTES), "--length", str((last - first) * GRANULE_BYTES)]
            subprocess.run(["fallocate", "--punch-hole", *place, str(self.base)], check=True)
            self.written_in.update(dict.fromkeys(range(first, last), self.epoch))

    def grow(self, capacity_bytes: int) -> None:
        """A larger disk; only without snapshots."""
        if self.deltas or capacity_bytes < self.capacity_bytes:
            raise ValueError("a disk with snapshots does not grow, and none shrinks")
        _check_capacity(capacity_bytes)
        os.truncate(self.base, capacity_bytes)
        self.capacity_bytes = capacity_bytes
        self._describe()

    def _describe(self) -> None:
        (self.directory / f"{self.name}.vmdk").write_text(
            _DESCRIPTOR.format(sectors=self.capacity_bytes // SECTOR_BYTES, extent=self.base.name),
            encoding="utf-8",
        )

    def delta_files(self) -> list[str]:
        """Names of the delta files that exist."""
        return [delta.file.name for delta in self.deltas]

    def _newest(self, granule: int) -> Path:
        for delta in reversed(self.deltas):
            if granule in delta.granules:
                return delta.file
        return self.base


def _check_capacity(capacity_bytes: int) -> None:
    if capacity_bytes <= 0 or capacity_bytes % SECTOR_BYTES:
        raise ValueError(f"a disk has whole sectors of {SECTOR_BYTES} bytes, not {capacity_bytes} bytes")


def areas(granules: Iterable[int], capacity_bytes: int, start_bytes: int = 0) -> list[tuple[int, int]]:
    """(start, length) of runs of granules from `start_bytes` on, none beyond the end of the disk."""
    runs: list[tuple[int, int]] = []
    for granule in sorted(granules):
        first = max(granule * GRANULE_BYTES, start_bytes)
        last = min((granule + 1) * GRANULE_BYTES, capacity_bytes)
        if last <= first:
            continue
        if runs and sum(runs[-1]) == first:
            runs[-1] = (runs[-1][0], last - runs[-1][0])
        else:
            runs.append((first, last - first))
    return runs
