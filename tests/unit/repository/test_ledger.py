# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import ledger
from sendense_hub.repository.effective import effective
from sendense_hub.repository.ledger import BLOCK_BYTES, LedgerWriter, Record

pytestmark = pytest.mark.unit

SECTORS_PER_BLOCK = 4
SECTOR = BLOCK_BYTES // SECTORS_PER_BLOCK
BLOCKS = 4


@st.composite
def whole_copies(draw: st.DrawFn) -> list[Record]:
    """What a writer does: data records are whole blocks, copied again as such; zero runs are any sectors."""
    records = []
    for number in range(draw(st.integers(0, 12))):
        if draw(st.booleans()):
            block = draw(st.integers(0, BLOCKS - 1))
            digest = hashlib.sha256(number.to_bytes(4)).digest()
            records.append(Record(block * BLOCK_BYTES, BLOCK_BYTES, digest))
        else:
            first = draw(st.integers(0, BLOCKS - 1))
            last = draw(st.integers(first, BLOCKS - 1))
            records.append(Record(first * BLOCK_BYTES, (last - first + 1) * BLOCK_BYTES, b""))
    return records


@given(whole_copies())
def test_later_records_replace_earlier_ones(records: list[Record]):
    model: list[bytes | None] = [None] * (BLOCKS * SECTORS_PER_BLOCK)
    for record in records:
        for sector in range(record.offset_bytes // SECTOR, record.end // SECTOR):
            model[sector] = record.sha256
    found: list[bytes | None] = [None] * len(model)
    end = 0
    for record in effective(records):
        assert record.offset_bytes >= end
        end = record.end
        for sector in range(record.offset_bytes // SECTOR, record.end // SECTOR):
            found[sector] = record.sha256
    assert found == model


def test_data_that_is_overlapped_in_part_is_never_checked_with_its_old_digest():
    old = Record(0, BLOCK_BYTES, b"o" * 32)
    new = Record(0, SECTOR, b"n" * 32)
    assert effective([old, new]) == [new]


def test_records_come_back_as_they_were_written(tmp_path: Path):
    records = [
        Record(0, BLOCK_BYTES, b"a" * 32),
        Record(BLOCK_BYTES, 7 * BLOCK_BYTES, b""),
        Record(8 * BLOCK_BYTES, 512, b"b" * 32),
    ]
    writer = LedgerWriter(tmp_path / "ledger", 8 * BLOCK_BYTES + 512)
    writer.append(records[:1])
    writer.append(records[1:])
    length_bytes, digest = writer.sync()
    writer.close()
    content = (tmp_path / "ledger").read_bytes()
    assert len(content) == length_bytes
    assert hashlib.sha256(content).digest() == digest
    assert list(ledger.read(tmp_path / "ledger")) == records
    (tmp_path / "ledger").write_bytes(content[:-1])
    with pytest.raises(SendenseError) as torn:
        list(ledger.read(tmp_path / "ledger"))
    assert torn.value.reason == Reason.REASON_POINT_CORRUPT


@pytest.mark.parametrize(
    "record",
    [
        Record(-512, 512, b""),
        Record(0, 0, b""),
        Record(4 * BLOCK_BYTES - 512, 1024, b""),
        Record(BLOCK_BYTES - 512, 1024, b"d" * 32),
        Record(0, 512, b"short"),
    ],
)
def test_a_record_that_cannot_be_is_refused_with_its_whole_batch(tmp_path: Path, record: Record):
    writer = LedgerWriter(tmp_path / "ledger", 4 * BLOCK_BYTES)
    with pytest.raises(SendenseError) as refused:
        writer.append([Record(0, 512, b"g" * 32), record])
    assert refused.value.reason == Reason.REASON_INVALID_REQUEST
    assert writer.sync()[0] == 0
    writer.close()
