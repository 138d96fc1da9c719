# SPDX-License-Identifier: Apache-2.0
"""The sum of a run: what fails it, and what was copied twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.chaos.report import Report, recopied

from sendense.hub.v1 import job_pb2 as pb

pytestmark = pytest.mark.unit

GOOD = Report(
    seed=1, seconds=1.0, faults={"kill-api": 2}, moments={"half": 2}, jobs=2, completed=1, failed_clean=1,
    failed_because={"TUNNEL_LOST": 1}, unclean=[], resumed=1, identical=1, not_identical=0, differences=[],
    observed=10, untrue=[], leftovers=0, left=[], recopied_bytes=1, at_risk_bytes=2, recopied_ratio=0.5,
    missing=[],
)  # fmt: skip


def test_a_run_passes_when_all_holds():
    assert GOOD.passed
    assert GOOD.lines()[-1] == "passed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"unclean": ["job j has not ended"]},
        {"not_identical": 1, "differences": ["disk 2000 differs"]},
        {"untrue": ["job j went from SUCCEEDED to RUNNING"]},
        {"leftovers": 1, "left": ["snapshot s"]},
        {"missing": ["3 faults of 200"]},
        {"recopied_ratio": 1.01},
    ],
)
def test_anything_that_does_not_hold_fails_it(wrong: dict[str, object]):
    report = replace(GOOD, **wrong)  # type: ignore[arg-type]
    assert not report.passed
    assert report.lines()[-1] == "FAILED; replay with: make chaos SEED=1"
    words = [each for value in wrong.values() if isinstance(value, list) for each in value]
    assert all(any(word in line for line in report.lines()) for word in words)


def job(*went_on: str, copied: int, phase: pb.JobPhase.ValueType = pb.JOB_PHASE_COPY) -> pb.Job:
    made = pb.Job(job_id="j", state=pb.JOB_STATE_SUCCEEDED)
    made.disks.add(key=2000, copied_bytes=copied)
    for each in went_on:
        made.interruptions.add(went_on=each, phase=phase)
    return made


def test_what_was_copied_twice_is_what_no_ledger_has_and_each_interruption_puts_so_much_at_risk():
    twice = job("same_snapshot", "same_snapshot", copied=130)
    assert recopied([twice], {"j": 100}, 16, 4) == (30, 40)
    assert recopied([job(copied=130)], {"j": 100}, 16, 4) == (0, 0)


def test_an_interruption_before_there_was_a_layer_puts_nothing_at_risk():
    early = job("same_snapshot", copied=100, phase=pb.JOB_PHASE_SNAPSHOT)
    assert recopied([early], {"j": 100}, 16, 4) == (0, 0)


@pytest.mark.parametrize("went_on", ["new_snapshot", "from_the_start"])
def test_what_changed_under_a_new_snapshot_is_not_counted(went_on: str):
    assert recopied([job("same_snapshot", went_on, copied=300)], {"j": 100}, 16, 4) == (0, 0)
