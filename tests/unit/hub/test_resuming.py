# SPDX-License-Identifier: Apache-2.0
"""When an interrupted job goes on, and when it is given up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.domain import resuming
from sendense_hub.domain.resuming import Patience

pytestmark = pytest.mark.unit

HOUR_US = 3_600_000_000
reasons = st.sampled_from([value for value in Reason.values() if value])


def interruption(reason: Reason.ValueType, moment_us: int, attempt: int = 1) -> pb.JobInterruption:
    made = pb.JobInterruption(attempt=attempt, failure=Failure(reason=reason))
    made.time.FromMicroseconds(moment_us)
    return made


def happened(*steps: tuple[Reason.ValueType, int, bool]) -> pb.Job:
    """A job that was interrupted for a reason, at a moment, having got further or not."""
    job = pb.Job()
    for attempt, (reason, moment_us, further) in enumerate(steps, start=1):
        resuming.record(job, interruption(reason, moment_us, attempt), got_further=further)
    return job


@given(reasons, st.booleans(), st.booleans())
def test_what_goes_on_without_a_plan_goes_on_with_one(reason: Reason.ValueType, planned: bool, first: bool):
    if resuming.may_go_on(reason, planned=planned, first=first):
        assert resuming.may_go_on(reason, planned=True, first=first)


@pytest.mark.parametrize(
    "reason",
    [
        Reason.REASON_CANCELLED,
        Reason.REASON_DATASTORE_FULL,
        Reason.REASON_DISK_MISMATCH,
        Reason.REASON_INTERNAL,
        Reason.REASON_INVALID_REQUEST,
        Reason.REASON_LEASE_REVOKED,
        Reason.REASON_POINT_CORRUPT,
        Reason.REASON_SNAPSHOT_TOO_OLD,
        Reason.REASON_VCENTER_LOGIN_FAILED,
    ],
)
def test_what_another_try_does_not_mend_ends_the_job(reason: Reason.ValueType):
    assert not resuming.may_go_on(reason, planned=True, first=False)


def test_what_is_missing_at_the_begin_fails_the_job_at_once_and_is_waited_for_later():
    absent = Reason.REASON_VCENTER_UNREACHABLE
    assert not resuming.may_go_on(absent, planned=False, first=True)
    assert resuming.may_go_on(absent, planned=False, first=False)
    assert resuming.may_go_on(absent, planned=True, first=True)


def test_a_site_that_went_away_after_the_job_was_accepted_is_waited_for():
    assert resuming.may_go_on(Reason.REASON_SITE_OFFLINE, planned=False, first=True)


def test_new_keys_of_an_agent_fail_no_job_that_has_only_begun_and_are_not_waited_for_without_end():
    reason, patience = Reason.REASON_AGENT_KEYS_REPLACED, Patience(tries=2)
    assert resuming.may_go_on(reason, planned=False, first=True)
    job = happened((reason, 1, False), (reason, 2, False))
    assert resuming.next_try_us(job.interruptions, patience, 3) is None


def test_what_fails_again_and_again_is_given_up_after_its_tries():
    reason, patience = Reason.REASON_SOURCE_READ_FAILED, Patience(tries=3)
    job = happened((reason, 1, True))
    pauses = []
    for attempt in range(2, 5):
        moment_us = resuming.next_try_us(job.interruptions, patience, attempt)
        pauses.append(None if moment_us is None else moment_us - attempt)
        resuming.record(job, interruption(reason, attempt, attempt), got_further=False)
    assert pauses == [0, 1_000_000, 2_000_000]
    assert resuming.next_try_us(job.interruptions, patience, 9) is None


def test_an_attempt_that_got_further_brings_all_tries_back():
    reason, patience = Reason.REASON_TARGET_WRITE_FAILED, Patience(tries=2)
    job = happened((reason, 1, True), (reason, 2, False), (reason, 3, True))
    assert resuming.next_try_us(job.interruptions, patience, 4) == 4


def test_waiting_for_what_is_missing_takes_no_tries_from_what_fails():
    absent, broken = Reason.REASON_VCENTER_UNREACHABLE, Reason.REASON_SOURCE_READ_FAILED
    patience = Patience(tries=2)
    job = happened((absent, 1, True), *((absent, n, False) for n in range(2, 20)), (broken, 20, False))
    assert resuming.next_try_us(job.interruptions, patience, 21) is not None
    resuming.record(job, interruption(broken, 22), got_further=False)
    assert resuming.next_try_us(job.interruptions, patience, 23) is None


def test_what_fails_and_is_missing_by_turns_is_given_up_by_the_clock():
    absent, broken = Reason.REASON_VCENTER_UNREACHABLE, Reason.REASON_SOURCE_READ_FAILED
    steps = [(absent if n % 2 else broken, HOUR_US + n, n == 0) for n in range(20)]
    job, patience = happened(*steps), Patience(absent_s=3600.0, tries=2)
    assert resuming.next_try_us(job.interruptions, patience, 2 * HOUR_US) is not None
    assert resuming.next_try_us(job.interruptions, patience, 2 * HOUR_US + 1) is None


def test_what_is_missing_is_waited_for_by_the_clock_and_not_by_tries():
    reason, patience = Reason.REASON_VCENTER_UNREACHABLE, Patience(absent_s=3600.0, tries=2)
    job = happened((reason, HOUR_US, True), *((reason, HOUR_US + n, False) for n in range(1, 40)))
    assert resuming.next_try_us(job.interruptions, patience, 2 * HOUR_US) == 2 * HOUR_US + 30_000_000
    assert resuming.next_try_us(job.interruptions, patience, 2 * HOUR_US + 1) is None


def test_a_clock_that_was_set_back_by_a_day_makes_no_job_wait_a_day():
    last = interruption(Reason.REASON_VCENTER_UNREACHABLE, 30 * HOUR_US)
    last.next_try_time.FromMicroseconds(30 * HOUR_US + 10)
    assert not resuming.time_has_come(last, 30 * HOUR_US + 9)
    assert resuming.time_has_come(last, 30 * HOUR_US + 10)
    assert resuming.time_has_come(last, 6 * HOUR_US)


def test_a_long_wait_is_one_line_with_the_moment_when_it_began():
    reason = Reason.REASON_SITE_OFFLINE
    job = happened((Reason.REASON_TUNNEL_LOST, 5, True), *((reason, 10 + n, False) for n in range(100)))
    assert [each.failure.reason for each in job.interruptions] == [Reason.REASON_TUNNEL_LOST, reason]
    last = job.interruptions[-1]
    assert (last.time.ToMicroseconds(), last.attempt, last.fruitless_attempts) == (10, 101, 100)
    assert resuming.stalled_since_us(job.interruptions) == 5


@given(st.lists(st.tuples(reasons, st.booleans()), min_size=1, max_size=12))
def test_it_has_stalled_since_the_last_interruption_after_something_was_stored(
    steps: list[tuple[Reason.ValueType, bool]],
):
    job = happened(*((reason, 10 * n, further) for n, (reason, further) in enumerate(steps, start=1)))
    last_further = max((n for n, (_, further) in enumerate(steps, start=1) if further), default=1)
    assert resuming.stalled_since_us(job.interruptions) == 10 * last_further
