# SPDX-License-Identifier: Apache-2.0
"""Which copies of the catalog are kept."""

from __future__ import annotations

import datetime

import pytest

from sendense_hub.repository.catalog_copies import too_many

pytestmark = pytest.mark.unit

_START = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


def _names(count: int, apart: datetime.timedelta) -> list[str]:
    moments = [_START + number * apart for number in range(count)]
    return [f"{moment:%Y%m%dT%H%M%S.%fZ}.sqlite" for moment in moments]


def test_the_newest_three_and_the_newest_of_each_of_seven_days_are_kept():
    names = _names(20 * 24, datetime.timedelta(hours=1))
    kept = sorted(set(names) - set(too_many(names)))
    assert [name[:11] for name in kept] == [
        *(f"202603{day}T23" for day in range(14, 20)),
        "20260320T21",
        "20260320T22",
        "20260320T23",
    ]


def test_kept_copies_stay_kept_while_new_ones_come():
    kept: set[str] = set()
    for name in _names(100, datetime.timedelta(minutes=250)):
        kept.add(name)
        kept -= set(too_many(kept))
        assert len(kept) <= 9
    assert len({name[:8] for name in kept}) == 7
    assert too_many(kept) == []


def test_few_are_all_kept():
    assert too_many([]) == []
    assert too_many(_names(3, datetime.timedelta(seconds=1))) == []
