# SPDX-License-Identifier: Apache-2.0
"""Disks of the simulated vCenter against a model: a bytearray, and a copy at each snapshot."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sendense_lab.vcenter.disk import GRANULE_BYTES, DiskFiles, areas

pytestmark = pytest.mark.unit

CAPACITY = 5 * GRANULE_BYTES + 512


@dataclasses.dataclass
class Snapshot:
    """What the disk was, and what change tracking knew of it."""

    image: bytes
    written_in: dict[int, int]


class Disk(RuleBasedStateMachine):
    """Any order of writes, trims and snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="sd-"))
        self.disk = DiskFiles(self.directory, "disk", CAPACITY)
        self.guest = bytearray(CAPACITY)
        self.snapshots: list[Snapshot] = []
        self.frozen: dict[int, tuple[bytes, dict[int, int]]] = {0: (bytes(CAPACITY), {})}
        """By epoch: image and map of every snapshot there ever was."""
        self.number = 0

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @rule(
        offset=st.integers(0, CAPACITY - 1),
        length=st.integers(1, 2 * GRANULE_BYTES + 1),
        fill=st.integers(0, 255),
    )
    def write(self, offset: int, length: int, fill: int) -> None:
        data = bytes([fill]) * min(length, CAPACITY - offset)
        self.disk.write(offset, data)
        self.guest[offset : offset + len(data)] = data

    @precondition(lambda self: not self.snapshots)
    @rule(first=st.integers(0, 5), count=st.integers(1, 6))
    def trim(self, first: int, count: int) -> None:
        self.disk.trim(first * GRANULE_BYTES, count * GRANULE_BYTES)
        end = min(first + count, CAPACITY // GRANULE_BYTES) * GRANULE_BYTES
        self.guest[first * GRANULE_BYTES : end] = bytes(max(0, end - first * GRANULE_BYTES))

    @precondition(lambda self: len(self.snapshots) < 4)
    @rule()
    def take_snapshot(self) -> None:
        self.number += 1
        self.disk.epoch += 1
        self.snapshots.append(Snapshot(bytes(self.guest), dict(self.disk.written_in)))
        self.frozen[self.disk.epoch] = bytes(self.guest), dict(self.disk.written_in)
        self.disk.push(self.number)

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def remove_snapshot(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.snapshots) - 1))
        del self.snapshots[index]
        self.disk.pop(index)

    @invariant()
    def the_guest_reads_what_it_wrote(self) -> None:
        assert self.disk.read(0, CAPACITY) == self.guest

    @invariant()
    def the_base_is_frozen_at_the_oldest_snapshot(self) -> None:
        base = self.disk.base.read_bytes()
        assert base == (self.snapshots[0].image if self.snapshots else self.guest)

    @invariant()
    def there_is_one_delta_for_each_snapshot(self) -> None:
        on_disk = sorted(path.name for path in self.directory.glob("*-delta.vmdk"))
        assert on_disk == sorted(self.disk.delta_files())
        assert len(on_disk) == len(self.snapshots)

    @invariant()
    def whatever_is_not_zero_is_in_use(self) -> None:
        used = self.disk.allocated()
        for granule in range(-(-CAPACITY // GRANULE_BYTES)):
            if any(self.guest[granule * GRANULE_BYTES : (granule + 1) * GRANULE_BYTES]):
                assert granule in used

    @invariant()
    def what_changed_between_two_snapshots_is_tracked(self) -> None:
        epochs = sorted(self.frozen)
        for before, after in itertools.pairwise(epochs):
            (old, _), (new, written) = self.frozen[before], self.frozen[after]
            changed = bytearray(old)
            for start, length in areas([g for g, epoch in written.items() if epoch >= before], CAPACITY):
                changed[start : start + length] = new[start : start + length]
            assert changed == new


TestDisk = Disk.TestCase
TestDisk.settings = settings(max_examples=25, stateful_step_count=15)


def test_only_what_was_written_counts_as_changed(tmp_path: Path) -> None:
    disk = DiskFiles(tmp_path, "disk", CAPACITY)
    disk.write(GRANULE_BYTES - 1, b"ab")
    disk.epoch = 1
    disk.write(CAPACITY - 1, b"z")
    since = [granule for granule, epoch in disk.written_in.items() if epoch >= 1]
    assert areas(since, CAPACITY) == [(5 * GRANULE_BYTES, 512)]
    assert areas(disk.written_in, CAPACITY) == [(0, 2 * GRANULE_BYTES), (5 * GRANULE_BYTES, 512)]


def test_runs_of_granules_are_one_area_cut_at_both_ends() -> None:
    assert areas([0, 1, 3, 5], CAPACITY) == [
        (0, 2 * GRANULE_BYTES),
        (3 * GRANULE_BYTES, GRANULE_BYTES),
        (5 * GRANULE_BYTES, 512),
    ]
    assert areas([0, 1], CAPACITY, start_bytes=70_000) == [(70_000, 2 * GRANULE_BYTES - 70_000)]
    assert areas([4], 4 * GRANULE_BYTES) == []


def test_a_new_disk_uses_nothing_and_a_trimmed_one_less(tmp_path: Path) -> None:
    disk = DiskFiles(tmp_path, "disk", CAPACITY)
    assert disk.allocated() == set()
    disk.write(0, b"x" * 3 * GRANULE_BYTES)
    assert disk.allocated() == {0, 1, 2}
    disk.trim(GRANULE_BYTES, GRANULE_BYTES + 5)
    assert disk.allocated() == {0, 2}


def test_a_guest_cannot_write_beyond_the_end(tmp_path: Path) -> None:
    disk = DiskFiles(tmp_path, "disk", CAPACITY)
    with pytest.raises(ValueError, match="beyond the end"):
        disk.write(CAPACITY - 1, b"xy")
    assert disk.base.stat().st_size == CAPACITY


@pytest.mark.parametrize("capacity", [0, 511, 65537])
def test_a_disk_has_whole_sectors(tmp_path: Path, capacity: int) -> None:
    with pytest.raises(ValueError, match="whole sectors"):
        DiskFiles(tmp_path, "disk", capacity)
    assert not list(tmp_path.iterdir())


def test_a_larger_disk_keeps_its_data_and_says_its_new_size(tmp_path: Path) -> None:
    disk = DiskFiles(tmp_path, "disk", GRANULE_BYTES)
    disk.write(0, b"x")
    disk.grow(CAPACITY)
    assert disk.read(0, CAPACITY) == b"x".ljust(CAPACITY, b"\0")
    assert f"RW {CAPACITY // 512} VMFS" in (tmp_path / "disk.vmdk").read_text()
    with pytest.raises(ValueError, match="none shrinks"):
        disk.grow(GRANULE_BYTES)


def test_a_newer_snapshots_delta_is_merged_into_the_older_ones_not_into_the_base(tmp_path: Path) -> None:
    disk = DiskFiles(tmp_path, "disk", CAPACITY)
    disk.push(1)
    disk.write(0, b"first")
    disk.push(2)
    disk.write(GRANULE_BYTES, b"second")
    disk.pop(1)
    assert disk.base.read_bytes() == bytes(CAPACITY)
    assert disk.read(0, 5) + disk.read(GRANULE_BYTES, 6) == b"firstsecond"
    disk.pop(0)
    assert disk.base.read_bytes()[GRANULE_BYTES : GRANULE_BYTES + 6] == b"second"
