# SPDX-License-Identifier: Apache-2.0
"""What a part of a ledger covers; and ledgers that a crash has torn."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_hub.repository import coverage
from sendense_hub.repository.ledger import BLOCK_BYTES, RECORD, LedgerWriter, Record, file_sha256, read

pytestmark = pytest.mark.unit

BLOCKS = 8
CAPACITY = BLOCKS * BLOCK_BYTES
SECTOR = 512


@st.composite
def records(draw: st.DrawFn) -> Record:
    block = draw(st.integers(0, BLOCKS - 1))
    first = draw(st.integers(0, 7)) * SECTOR
    length_bytes = draw(st.integers(1, 8)) * SECTOR
    data = draw(st.booleans())
    return Record(block * BLOCK_BYTES + first, length_bytes, bytes([block]) * 32 if data else b"")


def sectors(covered: list[tuple[int, int]]) -> set[int]:
    return {sector for first, end in covered for sector in range(first // SECTOR, end // SECTOR)}


@given(st.lists(records(), max_size=30), st.data())
def test_a_part_of_a_ledger_covers_just_its_records(written: list[Record], data: st.DataObject):
    first = data.draw(st.integers(0, len(written)))
    last = data.draw(st.integers(first, len(written)))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        writer = LedgerWriter(path, CAPACITY)
        writer.append(written)
        writer.close()
        found = coverage.of_ledger(path, first * RECORD.size, last * RECORD.size)
    part = written[first:last]
    assert sectors(found.ranges) == sectors([(each.offset_bytes, each.end) for each in part])
    assert found.data_bytes == sum(each.length_bytes for each in part if each.sha256)
    assert all(before[1] < after[0] for before, after in zip(found.ranges, found.ranges[1:], strict=False))


def torn(path: Path, whole: int, tail: bytes) -> list[Record]:
    writer = LedgerWriter(path, CAPACITY)
    made = [Record(number * BLOCK_BYTES, BLOCK_BYTES, bytes([number + 1]) * 32) for number in range(whole)]
    writer.append(made)
    writer.close()
    with path.open("ab") as file:
        file.write(tail)
    return made


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        b"\1" * (RECORD.size - 1),
        bytes(3 * RECORD.size),
        RECORD.pack(0, SECTOR, 7, bytes(32)),
        RECORD.pack(CAPACITY, SECTOR, 1, bytes(32)),
    ],
    ids=["whole", "part of a record", "zeroes", "unknown kind", "outside the disk"],
)
def test_ff13_a_ledger_goes_on_after_its_last_record_that_can_be(tmp_path: Path, tail: bytes):
    path = tmp_path / "ledger"
    made = torn(path, 3, tail)
    writer = LedgerWriter(path, CAPACITY, go_on=True)
    assert writer.length_bytes == 3 * RECORD.size
    more = Record(4 * BLOCK_BYTES, SECTOR, b"")
    writer.append([more])
    length_bytes, digest = writer.sync()
    writer.close()
    assert list(read(path)) == [*made, more]
    assert (length_bytes, digest.hex()) == (path.stat().st_size, file_sha256(path))


def test_a_ledger_that_is_not_there_is_not_gone_on_with(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        LedgerWriter(tmp_path / "none", CAPACITY, go_on=True)
