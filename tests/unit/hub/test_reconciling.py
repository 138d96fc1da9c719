# SPDX-License-Identifier: Apache-2.0
"""What becomes of things that a hub finds."""

from __future__ import annotations

import pytest

from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.domain.job_rules import ACTIVE, ENDED
from sendense_hub.domain.reconciling import Fate, fate_of_half_point, fate_of_snapshot, is_due

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_half_point_goes_when_an_ended_job_of_this_hub_began_it(state: pb.JobState.ValueType):
    assert _half_point(job_state=state) is Fate.REMOVE


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_a_half_point_of_a_job_that_has_not_ended_is_the_jobs(state: pb.JobState.ValueType):
    assert _half_point(job_state=state) is Fate.KEEP


@pytest.mark.parametrize(
    "changed", [{"owner_hub_id": "another"}, {"owner_hub_id": ""}, {"job_state": None}, {"only_ours": False}]
)
def test_a_half_point_that_is_not_provably_of_an_ended_job_of_this_hub_is_only_told(changed):
    assert _half_point(**changed) is Fate.REPORT


def test_every_state_of_a_job_is_either_active_or_ended():
    assert set(pb.JobState.values()) - {pb.JOB_STATE_UNSPECIFIED} == ACTIVE | ENDED


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_rule_17_a_snapshot_of_an_active_job_stays(state: pb.JobState.ValueType):
    assert fate_of_snapshot(job_state=state, pending=False) is Fate.KEEP


@pytest.mark.parametrize("state", [*sorted(ENDED), None])
def test_rule_17_a_snapshot_of_an_ended_or_unknown_job_goes_once(state: pb.JobState.ValueType | None):
    assert fate_of_snapshot(job_state=state, pending=False) is Fate.REMOVE
    assert fate_of_snapshot(job_state=state, pending=True) is Fate.KEEP


def test_a_vcenter_is_asked_once_and_then_when_its_time_has_come():
    assert is_due(5.0, None, every_s=100)
    assert not is_due(104.9, 5.0, every_s=100)
    assert is_due(105.0, 5.0, every_s=100)


def _half_point(**changed) -> Fate:
    facts = {"hub_id": "h", "owner_hub_id": "h", "job_state": pb.JOB_STATE_FAILED, "only_ours": True}
    return fate_of_half_point(**{**facts, **changed})
