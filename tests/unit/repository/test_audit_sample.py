# SPDX-License-Identifier: Apache-2.0
"""Which ranges an audit looks at."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sendense_hub.repository import audit_sample
from sendense_hub.repository.audit_sample import draw
from sendense_hub.repository.ledger import BLOCK_BYTES, RECORD, LedgerWriter, Record

pytestmark = pytest.mark.unit

GIB, TIB = 1 << 30, 1 << 40
DIGEST = b"d" * 32


def ledger(path: Path, records: list[Record], capacity: int = TIB) -> Path:
    writer = LedgerWriter(path, capacity)
    writer.append(records)
    writer.sync()
    writer.close()
    return path


def blocks(first: int, count: int) -> list[Record]:
    return [Record((first + each) * BLOCK_BYTES, BLOCK_BYTES, DIGEST) for each in range(count)]


def total(found: list[tuple[int, int]]) -> int:
    return sum(length for _, length in found)


def assert_in_order(found: list[tuple[int, int]], capacity: int) -> None:
    end = 0
    for offset, length in found:
        assert end <= offset
        assert length > 0
        end = offset + length
        assert offset // BLOCK_BYTES == (end - 1) // BLOCK_BYTES
    assert end <= capacity


def test_rule_27_all_of_a_disk_is_drawn_when_all_is_wanted(tmp_path: Path):
    capacity = 40 * BLOCK_BYTES + 512
    full = ledger(tmp_path / "full", blocks(3, 20), capacity)
    later = ledger(
        tmp_path / "later",
        [Record(4 * BLOCK_BYTES + 512, 1024, DIGEST), Record(0, 2 * BLOCK_BYTES, b"")],
        capacity,
    )
    found = draw([full, later], capacity, share=1.0, max_bytes=GIB, dice=random.Random(1))
    assert_in_order(found, capacity)
    assert total(found) == capacity


def test_rule_27_a_share_of_the_data_is_drawn_though_the_disk_is_mostly_empty(tmp_path: Path):
    full = ledger(tmp_path / "full", blocks(700_000, 1000))
    data = range(700_000 * BLOCK_BYTES, 701_000 * BLOCK_BYTES)
    found = draw([full], TIB, share=0.1, max_bytes=GIB, dice=random.Random(2))
    assert_in_order(found, TIB)
    assert sum(offset in data for offset, _ in found) >= 100
    elsewhere = [offset for offset, _ in found if offset not in data]
    assert 32 <= len(elsewhere) <= 64


def test_rule_27_no_more_is_drawn_than_the_limit_whatever_the_disk(tmp_path: Path):
    full = ledger(tmp_path / "full", blocks(0, 50_000))
    for limit in (64 * BLOCK_BYTES, 1000 * BLOCK_BYTES):
        found = draw([full], TIB, share=1.0, max_bytes=limit, dice=random.Random(3))
        assert_in_order(found, TIB)
        assert 0.8 * limit < total(found) <= limit


def test_the_same_seed_draws_the_same_and_another_one_something_else(tmp_path: Path):
    full = ledger(tmp_path / "full", blocks(0, 5000))
    first, again, other = (
        draw([full], TIB, share=0.01, max_bytes=GIB, dice=random.Random(seed)) for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other


def test_many_draws_see_each_part_of_a_chain(tmp_path: Path):
    ledgers = [ledger(tmp_path / str(number), blocks(number * 100, 100)) for number in range(3)]
    dice = random.Random(6)
    seen = {
        offset // BLOCK_BYTES
        for _ in range(200)
        for offset, _ in draw(ledgers, 300 * BLOCK_BYTES, share=0.05, max_bytes=GIB, dice=dice)
    }
    assert seen == set(range(300))


def test_records_of_a_long_ledger_are_not_all_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = ledger(tmp_path / "full", blocks(0, 200_000))
    unpacked = 0

    class Counting:
        size = RECORD.size

        @staticmethod
        def unpack(data: bytes) -> tuple[int, int, int, bytes]:
            nonlocal unpacked
            unpacked += 1
            return RECORD.unpack(data)

    monkeypatch.setattr(audit_sample, "RECORD", Counting)
    found = draw([full], TIB, share=0.01, max_bytes=256 * BLOCK_BYTES, dice=random.Random(7))
    assert total(found) > 200 * BLOCK_BYTES
    assert unpacked <= 256


def test_a_ledger_that_was_damaged_gives_no_range_beyond_the_disk(tmp_path: Path):
    capacity = 10 * BLOCK_BYTES
    path = ledger(tmp_path / "full", [Record(0, BLOCK_BYTES, DIGEST)], capacity)
    path.write_bytes(RECORD.pack(TIB, BLOCK_BYTES, 1, DIGEST) + b"\xff" * 56)
    found = draw([path], capacity, share=1.0, max_bytes=GIB, dice=random.Random(8))
    assert_in_order(found, capacity)
    assert total(found) == capacity


def test_an_empty_disk_without_records_is_looked_at_too(tmp_path: Path):
    path = ledger(tmp_path / "full", [])
    found = draw([path], 3 * BLOCK_BYTES, share=0.01, max_bytes=GIB, dice=random.Random(9))
    assert len(found) == 1
