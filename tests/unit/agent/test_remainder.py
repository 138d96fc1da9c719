# SPDX-License-Identifier: Apache-2.0
"""Interrupted as often as you like, over as many snapshots: the layer ends as the disk that was read last."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense_agent.domain.extents import Extents
from sendense_agent.domain.remainder import Era, Remainder, remainder

pytestmark = pytest.mark.unit

DISK, RECORD = 37, 4
"""In grains: the disk's end is within a record."""


def made(grains: Iterable[int]) -> Extents:
    result = Extents()
    for grain in sorted(grains):
        result.append(grain, 1)
    return result


def grains_of(extents: Extents) -> set[int]:
    return {grain for offset, length in extents for grain in range(offset, offset + length)}


@dataclass
class Frozen:
    """One snapshot: each grain's content (0: zeroes), which are in use, and when each was written last."""

    content: list[int]
    in_use: set[int]
    written_at: list[int]
    """Number of the last snapshot before which a grain was written or trimmed."""

    def changed_since(self, number: int) -> set[int]:
        return {grain for grain in range(DISK) if self.written_at[grain] > number}


def history(dice: random.Random, count: int) -> list[Frozen]:
    """A guest at work between snapshots; what is not in use is zeroes, and some zeroes are in use."""
    content, in_use, written_at = [0] * DISK, set[int](), [-1] * DISK
    moments = []
    for number in range(count):
        for _ in range(dice.randrange(12)):
            first = dice.randrange(DISK)
            for grain in range(first, min(DISK, first + dice.choice([1, 1, 3, 9]))):
                written_at[grain] = number
                kind = dice.randrange(5)
                content[grain] = 0 if kind <= 1 else dice.randrange(1, 10**6)
                (in_use.discard if kind == 0 else in_use.add)(grain)
        moments.append(Frozen(list(content), set(in_use), list(written_at)))
    return moments


Records = list[tuple[int, int, int]]
"""(first grain, past the last one, era): of data, within one unit; of zeroes, as long as they are."""


@dataclass
class Layer:
    """A layer and its ledger."""

    before: list[int]
    data: dict[int, int] = field(default_factory=dict)
    eras: list[int] = field(default_factory=list)
    """Number of each era's snapshot."""
    records: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of each grain: the record's number, and its era."""
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def content(self) -> list[int]:
        return [self.data.get(grain, self.before[grain]) for grain in range(DISK)]

    def record(self, grains: list[int], *, zero: bool) -> None:
        """A later record replaces the ones it overlaps; a run of zeroes is cut."""
        number, era = next(self._numbers), len(self.eras) - 1
        gone = {self.records[grain][0] for grain in grains if grain in self.records} - self._zero_runs
        self.records = {each: found for each, found in self.records.items() if found[0] not in gone}
        if zero:
            self._zero_runs.add(number)
        self.records |= dict.fromkeys(grains, (number, era))

    _zero_runs: set[int] = field(default_factory=set)

    def written(self, era: int) -> Extents:
        return made(grain for grain, found in self.records.items() if found[1] == era)


def copy(
    layer: Layer, left: Remainder, source: Frozen, dice: random.Random, *, share: float, zeroes: bool
) -> None:
    """Writes a share of it in any order, and records a part of that share."""
    work = [(run, True) for run in _runs(grains_of(left.zero), DISK)]
    for run in _runs(grains_of(left.read), RECORD):
        work += [(cut, source.content[cut[0]] == 0) for cut in _by_kind(run, source)]
    dice.shuffle(work)
    for run, zero in work:
        if dice.random() >= share:
            continue
        if not zero or zeroes or run[0] in grains_of(left.zero):
            layer.data |= {grain: source.content[grain] for grain in run}
        if share == 1 or dice.random() < 0.7:
            layer.record(run, zero=zero)


def _runs(grains: set[int], unit: int) -> list[list[int]]:
    runs: list[list[int]] = []
    for grain in sorted(grains):
        if runs and grain == runs[-1][-1] + 1 and grain % unit:
            runs[-1].append(grain)
        else:
            runs.append([grain])
    return runs


def _by_kind(run: list[int], source: Frozen) -> Iterator[list[int]]:
    part: list[int] = []
    for grain in run:
        if part and (source.content[part[-1]] == 0) != (source.content[grain] == 0):
            yield part
            part = []
        part.append(grain)
    yield part


@settings(max_examples=400)
@given(st.integers(0, 2**32), st.integers(0, 4), st.booleans(), st.booleans())
def test_after_any_interruptions_the_layer_is_the_disk_of_the_last_snapshot_and_the_ledger_knows_all_of_it(
    seed: int, interruptions: int, incremental: bool, usage_known: bool
):
    dice = random.Random(seed)
    moments = history(dice, interruptions + 2)
    before = moments[0].content if incremental else [0] * DISK
    layer, now = Layer(before), 0
    for attempt in range(interruptions + 1):
        now += 1 if attempt == 0 else dice.randrange(2)  # the same snapshot, or a new one
        source = moments[now]
        eras = [
            Era(
                Extents() if number == now else made(source.changed_since(number)),
                layer.written(index),
            )
            for index, number in enumerate(layer.eras)
        ]
        allocated = made(source.in_use) if usage_known else None
        in_use = source.in_use if usage_known else set(range(DISK))
        changed = source.changed_since(0)
        read = made(changed & in_use) if incremental else made(in_use)
        zero = made(changed - in_use) if incremental else Extents()
        left = remainder(read, zero, allocated, eras, capacity_bytes=DISK, record_bytes=RECORD)
        parts = [grains_of(left.read), grains_of(left.zero), grains_of(left.kept)]
        assert not (parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2])
        for grain in parts[2]:
            assert layer.content()[grain] == source.content[grain]
        fresh = not layer.eras
        layer.eras.append(now)
        last = attempt == interruptions
        share = 1.0 if last else dice.random()
        copy(layer, left, source, dice, share=share, zeroes=incremental or not fresh)
    assert layer.content() == moments[now].content
    assert {grain for grain in range(DISK) if layer.content()[grain] != before[grain]} <= set(layer.records)


def test_the_same_snapshot_costs_nothing_that_was_written():
    written = Extents([(0, 8), (12, 4)])
    left = remainder(
        Extents([(0, 20)]), Extents([(20, 4)]), None, [Era(Extents(), written)], capacity_bytes=24
    )
    assert (list(left.read), list(left.zero)) == ([(8, 4), (16, 4)], [(20, 4)])
    assert left.kept == written


def test_a_record_of_which_a_part_changed_is_copied_again_as_a_whole():
    era = Era(Extents([(5, 1)]), Extents([(0, 12)]))
    left = remainder(Extents(), Extents(), Extents([(0, 6)]), [era], capacity_bytes=12, record_bytes=4)
    assert list(left.read) == [(4, 2)]
    assert list(left.zero) == [(6, 2)]
    assert list(left.kept) == [(0, 4), (8, 4)]


def test_without_eras_it_is_the_plan():
    read, zero = Extents([(0, 4)]), Extents([(8, 4)])
    assert remainder(read, zero, None, [], capacity_bytes=12) == Remainder(read, zero, Extents())


def test_rule_27_of_a_sampled_range_that_changed_in_part_since_an_era_the_rest_is_copied():
    """An audit of that era may have written it; as it changed in part, none does so again."""
    sampled = [(4, 4), (0, 4), (12, 4), (8, 4)]
    era = Era(Extents([(5, 1), (14, 1)]), Extents([(6, 1)]))
    changed = Extents([(5, 1), (13, 1)])
    left = remainder(
        changed,
        Extents([(14, 1)]),
        Extents([(0, 13)]),
        [era],
        capacity_bytes=16,
        sampled=sampled,
        record_bytes=1,
    )
    assert (list(left.read), list(left.zero)) == ([(4, 2), (7, 1), (12, 2), (15, 1)], [(14, 1)])
    assert list(left.kept) == [(6, 1)]


def test_rule_27_a_sampled_range_costs_nothing_when_it_is_as_it_was_for_each_era():
    plan, era = Extents([(5, 1)]), Era(Extents(), Extents())
    for sampled in ([], [(4, 4), (4, 4), (8, 4)]):
        left = remainder(plan, Extents(), None, [era], capacity_bytes=16, sampled=sampled)
        assert left == Remainder(plan, Extents(), Extents())
