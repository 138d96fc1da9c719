# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_agent.datapath.mover import pieces
from sendense_agent.domain.extents import Extents

pytestmark = pytest.mark.unit

SECTOR = 512


@st.composite
def extents(draw: st.DrawFn) -> Extents:
    result = Extents()
    position = 0
    for _ in range(draw(st.integers(0, 6))):
        position += draw(st.integers(0, 5000)) * SECTOR
        length = draw(st.integers(1, 9000)) * SECTOR
        result.append(position, length)
        position += length
    return result


@given(extents())
def test_reads_cover_everything_once_and_never_cross_a_mebibyte(wanted: Extents):
    cut = list(pieces.reads(wanted))
    assert Extents(cut) == wanted
    for offset, length in cut:
        assert offset // pieces.PIECE_BYTES == (offset + length - 1) // pieces.PIECE_BYTES


def test_rule_12_zeroes_are_asked_for_in_pieces_that_qemu_takes():
    wanted = Extents([(512, 62 * 2**40)])
    cut = list(pieces.zeroes(wanted))
    assert Extents(cut) == wanted
    assert max(length for _, length in cut) < 2**32


@given(st.binary(min_size=1, max_size=8), st.lists(st.integers(0, 4095), max_size=4), st.integers(0, 3))
def test_rule_13_a_single_byte_anywhere_is_data(value: bytes, places: list[int], first_sector: int):
    data = bytearray(4 * pieces.GRAIN_BYTES)
    for number, place in enumerate(places):
        data[place * 64 + number] = value[0] | 1
    offset = first_sector * SECTOR
    found = list(pieces.runs(memoryview(data), offset))
    assert [start for start, _, _ in found] == [0, *(start + size for start, size, _ in found)][:-1]
    assert sum(size for _, size, _ in found) == len(data)
    for start, size, zero in found:
        if zero:
            assert not any(data[start : start + size])
        else:
            grains = range(start, start + size, pieces.GRAIN_BYTES)
            assert any(data[start : start + size]), list(grains)
    assert all(a[2] != b[2] for a, b in pairwise(found))
