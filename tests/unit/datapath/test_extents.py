# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_agent.domain.extents import Extents

pytestmark = pytest.mark.unit

DISK = 40


def made(sectors: set[int]) -> Extents:
    result = Extents()
    for sector in sorted(sectors):
        result.append(sector, 1)
    return result


def sectors_of(extents: Extents) -> set[int]:
    return {sector for offset, length in extents for sector in range(offset, offset + length)}


some = st.sets(st.integers(0, DISK - 1))


@given(some, some)
def test_set_operations_are_those_of_sets(first: set[int], second: set[int]):
    one, two = made(first), made(second)
    assert sectors_of(one.intersect(two)) == first & second
    assert sectors_of(one.subtract(two)) == first - second
    assert sectors_of(one.union(two)) == first | second
    assert sectors_of(one.clip(DISK // 2)) == {each for each in first if each < DISK // 2}
    for result in (one.intersect(two), one.subtract(two), one.union(two)):
        ends = [offset + length for offset, length in result]
        starts = [offset for offset, _ in result]
        assert all(end < start for end, start in zip(ends, starts[1:], strict=False))  # neighbours are one


@given(some)
def test_it_survives_the_way_to_another_process(sectors: set[int]):
    extents = made(sectors)
    assert Extents.from_bytes(extents.to_bytes()) == extents
    assert extents.total_bytes == len(sectors)


@pytest.mark.parametrize("bad", [(5, 1), (9, 0), (-1, 2)])
def test_what_is_not_in_order_is_refused(bad: tuple[int, int]):
    with pytest.raises(ValueError, match="range"):
        Extents([(4, 4)]).append(*bad)


@given(some, st.integers(1, 9))
def test_rounded_out_are_all_units_that_are_touched(sectors: set[int], unit: int):
    touched = {sector // unit for sector in sectors}
    assert sectors_of(made(sectors).round_out(unit)) == {
        sector for each in touched for sector in range(each * unit, (each + 1) * unit)
    }
