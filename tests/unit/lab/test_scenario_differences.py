# SPDX-License-Identifier: Apache-2.0
"""The comparison of a job with what its scenario expects: it must see every kind of difference."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.scenarios.stage import differences

from sendense_lab.scenarios.model import Expected, ExpectedDisk

pytestmark = pytest.mark.unit

EXPECTED = dataclasses.asdict(
    Expected(
        state="failed",
        reason="SNAPSHOT_LOST",
        disks={"2000": ExpectedDisk("full", "first_backup")},
        not_protected={"2001": "independent"},
        warnings=["b", "a"],
        quiesce="quiesced",
        attempts=1,
        says=["gone"],
    )
)
JOB: dict[str, Any] = {
    "state": "JOB_STATE_FAILED",
    "failure": {"reason": "REASON_SNAPSHOT_LOST", "message": "it is gone"},
    "disks": [
        {"key": 2000, "state": "DISK_STATE_COPIED", "mode": "full", "mode_reason": "first_backup"},
        {"key": 2001, "state": "DISK_STATE_SKIPPED", "mode": "", "mode_reason": "independent"},
    ],
    "warnings": [{"code": "a", "message": ""}, {"code": "b", "message": ""}],
    "quiesce_result": "quiesced",
    "attempt": 1,
}


def test_a_job_as_it_is_expected() -> None:
    assert differences(EXPECTED, JOB) == []


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"state": "JOB_STATE_CANCELLED"}, "state"),
        ({"failure": {"reason": "REASON_INTERNAL", "message": "it is gone"}}, "reason"),
        ({"failure": {"reason": "REASON_SNAPSHOT_LOST", "message": ""}}, "nothing says"),
        ({"disks": JOB["disks"][:1]}, "not_protected"),
        ({"disks": JOB["disks"][1:]}, "disks"),
        ({"disks": [{**JOB["disks"][0], "mode": "incremental"}, JOB["disks"][1]]}, "disks"),
        ({"disks": [{**JOB["disks"][0], "mode_reason": "requested"}, JOB["disks"][1]]}, "disks"),
        ({"warnings": JOB["warnings"][:1]}, "warnings"),
        ({"warnings": [*JOB["warnings"], {"code": "c", "message": ""}]}, "warnings"),
        ({"quiesce_result": "crash_consistent"}, "quiesce"),
        ({"attempt": 2}, "attempts"),
    ],
)
def test_every_difference_is_seen(change: dict[str, Any], about: str) -> None:
    found = differences(EXPECTED, {**JOB, **change})
    assert found
    assert found[0].startswith(about)
