# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths
from sendense_hub.domain import job_rules
from sendense_hub.domain.point_locks import PointLocks

pytestmark = pytest.mark.unit

UUIDS = st.uuids().map(str)


def test_every_state_is_either_active_or_ended():
    known = {state for state in pb.JobState.values() if state != pb.JOB_STATE_UNSPECIFIED}
    assert known == job_rules.ACTIVE | job_rules.ENDED
    assert not job_rules.ACTIVE & job_rules.ENDED


def test_every_phase_of_an_agent_is_a_phase_of_the_job_and_they_only_go_forward():
    phases = [phase for phase in agent.AgentPhase.values() if phase != agent.AGENT_PHASE_UNSPECIFIED]
    assert set(phases) == set(job_rules.PHASES)
    shown = [job_rules.PHASES[phase] for phase in sorted(phases)]
    assert shown == sorted(shown)
    assert pb.JOB_PHASE_COMMIT not in shown, "only the hub commits"


def test_a_job_can_be_cancelled_until_its_point_is_being_completed_and_while_it_waits():
    for state, phase in itertools.product(pb.JobState.values(), pb.JobPhase.values()):
        wanted = (state in job_rules.ACTIVE and phase < pb.JOB_PHASE_COMMIT) or state == pb.JOB_STATE_WAITING
        assert job_rules.may_cancel(pb.Job(state=state, phase=phase)) == wanted


@given(
    st.tuples(UUIDS, st.integers(1, 9), st.integers(0, 9999)),
    st.tuples(UUIDS, st.integers(1, 9), st.integers(0, 9999)),
)
def test_ff03a_an_export_name_is_never_used_twice(one: tuple[str, int, int], other: tuple[str, int, int]):
    names = job_rules.export_name(*one), job_rules.export_name(*other)
    assert (names[0] == names[1]) == (one == other)


def test_an_export_name_fits_into_the_path_of_a_socket():
    from pathlib import Path

    name = job_rules.export_name(str(uuid.uuid4()), 2**31 - 1, 2**31 - 1)
    longest = HubPaths(Path("/s"), Path("/" + "r" * 39)).exports_dir / f"{name}.sock"
    assert len(str(longest)) <= 107


# --- locks ---


def test_many_read_a_point_and_nobody_deletes_it_meanwhile():
    locks = PointLocks()
    with locks.reading(["a", "b"]), locks.reading(["a"]):
        with pytest.raises(SendenseError) as busy, locks.deleting("a"):
            pass
        assert (busy.value.reason, busy.value.retryable) == (Reason.REASON_POINT_BUSY, True)
        with locks.deleting("c"):
            pass
    with locks.deleting("a"), locks.deleting("b"):
        pass


def test_who_deletes_a_point_is_alone_with_it():
    locks = PointLocks()
    with locks.deleting("a"):
        for second in (locks.deleting("a"), locks.reading(["b", "a"])):
            with pytest.raises(SendenseError), second:
                pass
        with locks.deleting("b"):
            pass
    with locks.reading(["a"]):
        pass


@given(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from("abc"), min_size=1)), max_size=12))
def test_locks_are_given_back_whatever_happens(steps: list[tuple[bool, set[str]]]):
    """Each step takes locks, opens the next one inside, and fails in the end."""
    locks = PointLocks()

    def take(left: list[tuple[bool, set[str]]], readers: list[set[str]], deleting: set[str]) -> None:
        if not left:
            raise KeyError("the end")
        reading, wanted = left[0]
        if reading:
            allowed = not wanted & deleting
            context = locks.reading(wanted)
        else:
            wanted = {min(wanted)}
            allowed = not wanted & deleting and not any(wanted & each for each in readers)
            context = locks.deleting(min(wanted))
        try:
            with context:
                assert allowed
                take(
                    left[1:],
                    [*readers, wanted] if reading else readers,
                    deleting | (set() if reading else wanted),
                )
        except SendenseError:
            assert not allowed
            take(left[1:], readers, deleting)

    with pytest.raises(KeyError):
        take(steps, [], set())
    for point_id in "abc":
        with locks.deleting(point_id):
            pass
