# SPDX-License-Identifier: Apache-2.0
"""What a compared copy reads, beside what the previous point holds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense_agent.datapath.mover.comparing import RECORD, DigestsError, Work, audit, digests, work
from sendense_agent.datapath.mover.pieces import PIECE_BYTES
from sendense_agent.domain.extents import Extents

pytestmark = pytest.mark.unit

SECTOR = 512
CAPACITY = 3 * PIECE_BYTES + 3 * SECTOR
END = RECORD.pack(CAPACITY, 0, 2, b"")


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Disjoint, ascending, within one block each."""
    sectors = st.integers(0, CAPACITY // SECTOR)
    borders = draw(st.sets(sectors, max_size=12)) | {0, CAPACITY // SECTOR}
    borders |= set(range(0, CAPACITY // SECTOR, PIECE_BYTES // SECTOR))
    return [
        (start * SECTOR, (end - start) * SECTOR)
        for start, end in pairwise(sorted(borders))
        if draw(st.booleans())
    ]


def test_rule_28_data_is_read_beside_its_record_and_where_there_was_none_and_zeroed_where_it_is_gone():
    old = [(0, PIECE_BYTES, b"a" * 32), (PIECE_BYTES, PIECE_BYTES, b"b" * 32)]
    half = PIECE_BYTES // 2
    used = Extents([(PIECE_BYTES + half, half), (2 * PIECE_BYTES + SECTOR, SECTOR)])
    assert list(work(used, old, CAPACITY)) == [
        Work(0, PIECE_BYTES, zero=True),
        Work(PIECE_BYTES, PIECE_BYTES, sha256=b"b" * 32, unused=((0, half),)),
        Work(2 * PIECE_BYTES + SECTOR, SECTOR, sha256=b""),
    ]


@settings(max_examples=60)
@given(ranges(), ranges(), st.integers(0, 2**32))
def test_rule_28_what_is_done_turns_the_previous_disk_into_this_one_and_equal_records_are_left_alone(
    before: list[tuple[int, int]], used: list[tuple[int, int]], seed: int
):
    dice = random.Random(seed)
    old, image = bytearray(CAPACITY), bytearray(b"g" * CAPACITY)  # garbage is what is not in use
    records = []
    for offset, length in before:
        old[offset : offset + length] = dice.randbytes(length)
        records.append((offset, length, hashlib.sha256(old[offset : offset + length]).digest()))
    expected = bytearray(CAPACITY)
    for offset, length in used:
        kind = dice.randrange(3)
        same = bytes(old[offset : offset + length])
        image[offset : offset + length] = [bytes(length), dice.randbytes(length), same][kind]
        expected[offset : offset + length] = image[offset : offset + length]
    result, read = bytearray(old), Extents()
    for each in work(Extents(used), records, CAPACITY):
        part = slice(each.offset, each.offset + each.length)
        assert each.offset // PIECE_BYTES == (part.stop - 1) // PIECE_BYTES
        if each.zero:
            result[part] = bytes(each.length)
            continue
        read.append(each.offset, each.length)
        seen = image[part]
        for start, length in each.unused:
            seen[start : start + length] = bytes(length)
        if each.sha256:
            if hashlib.sha256(seen).digest() == each.sha256:
                assert result[part] == seen
            result[part] = seen
        else:
            assert each.sha256 == b""
            assert not any(result[part])
            result[part] = seen
    assert result == expected
    assert Extents(used).subtract(read) == Extents()


def packed(records: list[tuple[int, int, int, bytes]], size: int) -> Iterator[bytes]:
    """As an export gives them, in blocks of any size."""
    data = b"".join(RECORD.pack(*each) for each in records)
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_rule_28_a_record_that_is_cut_between_two_blocks_is_whole():
    record = (SECTOR, SECTOR, 1, b"a" * 32)
    blocks = packed([record, (CAPACITY, 0, 2, b"")], RECORD.size - 1)
    assert list(digests(blocks, CAPACITY)) == [(SECTOR, SECTOR, b"a" * 32)]


@given(ranges(), st.integers(1, 300))
def test_rule_28_digests_come_as_they_were_written_whatever_the_blocks(
    before: list[tuple[int, int]], size: int
):
    records = [(offset, length, bytes([length % 251]) * 32) for offset, length in before]
    written = [(offset, length, 1, sha256) for offset, length, sha256 in records]
    blocks = packed([*written, (CAPACITY, 0, 2, b"")], size)
    assert list(digests([*blocks, bytes(4096)], CAPACITY)) == records


@pytest.mark.parametrize(
    "records",
    [
        [(0, 512, 1, b"a" * 32)],  # no end mark: a part of them was lost
        [(512, 512, 1, b"a" * 32), (0, 512, 1, b"a" * 32), (CAPACITY, 0, 2, b"")],
        [(CAPACITY - 512, 1024, 1, b"a" * 32), (CAPACITY, 0, 2, b"")],
        [(0, PIECE_BYTES + 512, 1, b"a" * 32), (CAPACITY, 0, 2, b"")],
        [(0, 512, 0, b""), (CAPACITY, 0, 2, b"")],
        [(0, 0, 0, b"")],
    ],
)
def test_rule_28_digests_that_cannot_be_end_the_copy(records: list[tuple[int, int, int, bytes]]):
    with pytest.raises(DigestsError):
        list(digests(packed(records, 4096), CAPACITY))


def test_rule_27_a_record_that_changed_in_part_is_left_out_and_of_zeroes_the_rest_is_read():
    sample = RECORD.pack(0, PIECE_BYTES, 1, b"a" * 32) + RECORD.pack(PIECE_BYTES, 4 * SECTOR, 0, b"")
    sample += RECORD.pack(2 * PIECE_BYTES, SECTOR, 1, b"b" * 32)
    changed = Extents([(SECTOR, SECTOR), (PIECE_BYTES + SECTOR, SECTOR)])
    assert list(audit(sample, changed, CAPACITY)) == [
        Work(PIECE_BYTES, SECTOR, sha256=b"", audit=True),
        Work(PIECE_BYTES + 2 * SECTOR, 2 * SECTOR, sha256=b"", audit=True),
        Work(2 * PIECE_BYTES, SECTOR, sha256=b"b" * 32, audit=True),
    ]


@settings(max_examples=100)
@given(ranges(), ranges(), st.integers(0, 2**32))
def test_rule_27_an_audit_reads_no_byte_that_changed_and_all_records_that_did_not(
    sample: list[tuple[int, int]], changes: list[tuple[int, int]], seed: int
):
    dice = random.Random(seed)
    records = [
        RECORD.pack(offset, length, 1, bytes([1 + length % 250]) * 32)
        if dice.random() < 0.5
        else RECORD.pack(offset, length, 0, b"")
        for offset, length in sample
    ]
    changed = Extents(changes)
    given_twice = records + dice.sample(records, len(records) // 2)
    dice.shuffle(given_twice)
    done = list(audit(b"".join(given_twice), changed, CAPACITY))
    read = Extents((each.offset, each.length) for each in done)
    assert read.intersect(changed) == Extents()
    expected = Extents()
    for (offset, length), record in zip(sample, records, strict=True):
        (_, _, kind, _) = RECORD.unpack(record)
        part = Extents([(offset, length)])
        rest = part.subtract(changed)
        if kind == 0 or rest == part:
            expected = expected.union(rest)
    assert read == expected
    known = {(offset, length): bytes([1 + length % 250]) * 32 for offset, length in sample}
    for each in done:
        assert each.audit
        assert each.sha256 == b"" or each.sha256 == known[each.offset, each.length]


@pytest.mark.parametrize(
    "record",
    [
        (CAPACITY - 512, 1024, 1, b"a" * 32),
        (0, PIECE_BYTES + 512, 1, b"a" * 32),
        (0, 0, 1, b"a" * 32),
        (0, 512, 2, b""),
    ],
)
def test_a_sample_that_cannot_be_is_refused(record: tuple[int, int, int, bytes]):
    with pytest.raises(DigestsError):
        list(audit(RECORD.pack(*record), Extents(), CAPACITY))
