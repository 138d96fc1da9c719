# SPDX-License-Identifier: Apache-2.0
"""Ledgers of a chain, put together."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense_hub.repository import digests
from sendense_hub.repository.effective import UNKNOWN
from sendense_hub.repository.ledger import BLOCK_BYTES, LedgerWriter, Record

pytestmark = pytest.mark.unit

PARTS_OF_BLOCK = 4
SECTOR = BLOCK_BYTES // PARTS_OF_BLOCK
BLOCKS = 6


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    """Data within one block, zeroes over any number of them."""
    made = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            block = draw(st.integers(0, BLOCKS - 1))
            first = draw(st.integers(0, PARTS_OF_BLOCK - 1))
            count = draw(st.integers(1, PARTS_OF_BLOCK - first))
            start = block * BLOCK_BYTES + first * SECTOR
            digest = hashlib.sha256(draw(st.binary(min_size=4, max_size=4))).digest()
            made.append(Record(start, count * SECTOR, digest))
        else:
            first = draw(st.integers(0, BLOCKS * PARTS_OF_BLOCK - 1))
            count = draw(st.integers(1, BLOCKS * PARTS_OF_BLOCK - first))
            made.append(Record(first * SECTOR, count * SECTOR, b""))
    return made


@settings(max_examples=80)
@given(st.lists(records(), min_size=1, max_size=4), st.sampled_from([1, 2, 5, 64]), st.integers(1, 200))
def test_each_sector_is_known_zeroes_or_unknown_as_the_newest_layer_has_it(
    chain: list[list[Record]], part_blocks: int, buffered_bytes: int
):
    model: list[tuple[Record] | None] = [None] * (BLOCKS * PARTS_OF_BLOCK)
    for layer in chain:
        for record in layer:
            for sector in range(record.offset_bytes // SECTOR, record.end // SECTOR):
                model[sector] = (record,) if record.sha256 else None
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_LEAST_PART_BYTES", part_blocks * BLOCK_BYTES)
        patch.setattr(digests, "PARTS", BLOCKS)
        patch.setattr(digests, "_BUFFERED_BYTES", buffered_bytes)
        ledgers = []
        for number, layer in enumerate(chain):
            ledgers.append(Path(name) / str(number))
            writer = LedgerWriter(ledgers[-1], BLOCKS * BLOCK_BYTES)
            writer.append(layer)
            writer.close()
        found = list(digests.merged(ledgers, BLOCKS * BLOCK_BYTES, Path(name)))
        assert sorted(Path(name).iterdir()) == sorted(ledgers)
    position, seen = 0, [False] * len(model)
    for record in found:
        assert position <= record.offset_bytes
        position = record.end
        sectors = range(record.offset_bytes // SECTOR, record.end // SECTOR)
        assert record.offset_bytes // BLOCK_BYTES == (record.end - 1) // BLOCK_BYTES
        for sector in sectors:
            seen[sector] = True
            known = model[sector]
            assert known is not None
            if record.sha256 != UNKNOWN:
                assert known[0] == record
    for sector, known in enumerate(model):
        assert seen[sector] == (known is not None)
    whole = {
        each[0]
        for each in model
        if each is not None
        and all(
            (now := model[sector]) is not None and now[0] is each[0]
            for sector in range(each[0].offset_bytes // SECTOR, each[0].end // SECTOR)
        )
    }
    assert whole <= set(found), "a digest that could be compared was given up"
