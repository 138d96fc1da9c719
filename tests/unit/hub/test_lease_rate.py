# SPDX-License-Identifier: Apache-2.0
"""How many leases an agent may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense_hub.domain import lease_rate
from sendense_hub.domain.lease_rate import LeaseRate, LeasesOfJobs

pytestmark = pytest.mark.unit

DAY_S = 86_400.0
moments = st.lists(st.floats(0, 3 * DAY_S), max_size=200).map(sorted)


@given(moments, st.integers(1, 30), st.integers(1, 100))
def test_in_no_span_of_time_are_there_more_than_at_once_and_per_hour(
    asked_s: list[float], at_once: int, per_hour: int
) -> None:
    rate = LeaseRate(at_once, per_hour, 0.0)
    given_s = [moment for moment in asked_s if rate.take(moment)]
    for first, start in enumerate(given_s):
        for count, end in enumerate(given_s[first:], 1):
            assert count <= at_once + (end - start) / 3600 * per_hour + 1e-6


@given(st.integers(0, 19), st.lists(st.floats(361, DAY_S), max_size=200))
def test_a_few_at_once_and_then_one_after_a_while_are_never_refused(
    burst: int, pauses_s: list[float]
) -> None:
    rate = lease_rate.of_attempt(5.0)
    assert all(rate.take(5.0) for _ in range(burst))
    now_s = 5.0
    for pause_s in pauses_s:
        now_s += pause_s
        assert rate.take(now_s)


@given(st.integers(1, 256))
def test_an_attempt_may_log_in_for_each_disk_twice(disks: int) -> None:
    rate = lease_rate.of_attempt(0.0)
    lease_rate.allow_disks(rate, disks)
    assert all(rate.take(0.0) for _ in range(20 + 2 * disks))
    assert not rate.take(0.0)


def test_a_plan_with_very_many_disks_allows_no_more() -> None:
    rate = lease_rate.of_attempt(0.0)
    lease_rate.allow_disks(rate, 1_000_000)
    assert sum(rate.take(0.0) for _ in range(10_000)) == 20 + 512


def test_attempts_of_one_job_share_what_there_is_and_other_jobs_have_their_own() -> None:
    now_s = 0.0
    jobs = LeasesOfJobs(lambda: now_s, at_once=3, per_hour=60)
    assert [jobs.take("a") for _ in range(4)] == [True, True, True, False]
    assert jobs.take("b")
    now_s = 60.0
    assert [jobs.take("a"), jobs.take("a")] == [True, False]
    now_s = DAY_S
    assert jobs.take("c")
    assert list(jobs._rates) == ["c"], "what is full again is forgotten"
