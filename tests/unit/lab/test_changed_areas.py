# SPDX-License-Identifier: Apache-2.0
"""Pages of changed areas: however they are cut, together they say the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from sendense_lab.vcenter.changed_areas import WRONG, AreaSettings, Frozen, page
from sendense_lab.vcenter.disk import GRANULE_BYTES, areas

pytestmark = pytest.mark.unit

TRACKING = "52 aa bb"
CAPACITY = 20 * GRANULE_BYTES + 512
FAULT = vim.fault.FileFault(file="[datastore1] vm/vm.vmdk")


def ask(settings: AreaSettings, frozen: Frozen | None, start: int, change_id: str = "*"):
    return page(settings, frozen, CAPACITY, start, change_id, FAULT)


def all_pages(settings: AreaSettings, frozen: Frozen, change_id: str) -> tuple[list[tuple[int, int]], int]:
    """(areas, number of pages)."""
    found: list[tuple[int, int]] = []
    position = count = 0
    while position < CAPACITY:
        answer = ask(settings, frozen, position, change_id)
        assert answer.startOffset == position
        assert answer.length > 0
        found += [(area.start, area.length) for area in answer.changedArea]
        position += answer.length
        count += 1
    assert position == CAPACITY
    return found, count


def joined(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    result: list[tuple[int, int]] = []
    for start, length in found:
        if result and sum(result[-1]) == start:
            result[-1] = result[-1][0], result[-1][1] + length
        else:
            result.append((start, length))
    return result


@given(
    allocated=st.sets(st.integers(0, 20)),
    written_in=st.dictionaries(st.integers(0, 20), st.integers(0, 5)),
    since=st.integers(0, 5),
    per_page=st.integers(1, 5),
    window=st.sampled_from([0, 512, GRANULE_BYTES, 3 * GRANULE_BYTES, 7 * GRANULE_BYTES + 512, 2 * CAPACITY]),
)
def test_pages_of_any_size_say_the_same_together(
    allocated: set[int], written_in: dict[int, int], since: int, per_page: int, window: int
) -> None:
    settings = AreaSettings(areas_per_page=per_page, window_bytes=window)
    frozen = Frozen(TRACKING, 5, allocated, written_in)
    found, _ = all_pages(settings, frozen, "*")
    assert joined(found) == areas(allocated, CAPACITY)
    found, _ = all_pages(settings, frozen, f"{TRACKING}/{since}")
    changed = {granule for granule, epoch in written_in.items() if epoch >= since}
    assert joined(found) == areas(changed, CAPACITY)


def test_a_page_holds_no_more_areas_than_it_may() -> None:
    frozen = Frozen(TRACKING, 1, {0, 2, 4, 6}, {})
    found, pages = all_pages(AreaSettings(areas_per_page=1), frozen, "*")
    assert len(found) == 4
    assert pages == 4
    assert all_pages(AreaSettings(), frozen, "*")[1] == 1


@pytest.mark.parametrize("start", [-1, CAPACITY, CAPACITY + 1])
def test_rule_08_asking_at_the_capacity_is_an_invalid_argument(start: int) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        ask(AreaSettings(), Frozen(TRACKING, 1, set(), {}), start)
    assert caught.value.invalidProperty == "startOffset"


@pytest.mark.parametrize("change_id", ["other/1", f"{TRACKING}/3"])
def test_rule_11_a_foreign_or_future_change_id_is_a_file_fault(change_id: str) -> None:
    with pytest.raises(vim.fault.FileFault):
        ask(AreaSettings(), Frozen(TRACKING, 2, set(), {}), 0, change_id)


@pytest.mark.parametrize("change_id", ["", "nonsense", f"{TRACKING}/x"])
def test_rule_11_a_change_id_that_is_none_is_an_invalid_argument(change_id: str) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        ask(AreaSettings(), Frozen(TRACKING, 2, set(), {}), 0, change_id)
    assert caught.value.invalidProperty == "changeId"


def test_rule_07_what_is_in_use_can_be_unknown() -> None:
    with pytest.raises(vim.fault.FileFault):
        ask(AreaSettings(used_areas=False), Frozen(TRACKING, 2, {1}, {}), 0)
    with pytest.raises(vim.fault.FileFault):
        ask(AreaSettings(), None, 0)


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_answer_differs_from_the_right_one(name: str) -> None:
    frozen = Frozen(TRACKING, 2, {1, 3}, {})
    right, wrong = ask(AreaSettings(), frozen, 0), ask(AreaSettings(areas_wrong=name), frozen, 0)

    def facts(answer) -> object:
        return answer.startOffset, answer.length, [(each.start, each.length) for each in answer.changedArea]

    assert facts(right) != facts(wrong)
