# SPDX-License-Identifier: Apache-2.0
"""A job that is told how fast it may read keeps to it, with all its disks together."""

from __future__ import annotations

import pytest
from tests.e2e.kit import MIB, Lab, World, data, until

pytestmark = pytest.mark.e2e

_LONG_S = 100
_DISK_MIB = 24
_RATE_MIB_S = 8
# Two disks at the rate of the job, less the second's worth that each may have saved up, and one that begins
# alone. At that rate for each disk it would be 3 s.
_AT_LEAST_S = 2 * _DISK_MIB / _RATE_MIB_S - 2


def test_a_limit_is_of_the_whole_job_and_is_shown(shared_world: World, shared_lab: Lab) -> None:
    name = "limited"
    for key in shared_lab.add_vm(name, [_DISK_MIB * MIB] * 2).disks:
        shared_lab.write(name, key, 0, data(_DISK_MIB * MIB, key))
    shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=_LONG_S)
    try:
        job_id = shared_world.ask("backup", "start", name)["job_id"]
        until(
            lambda: shared_world.job(job_id)["phase"] == "JOB_PHASE_SNAPSHOT",
            "the snapshot is being made",
        )
        limited = shared_world.run("job", "limit", job_id[:8], f"{_RATE_MIB_S}MiB/s")
        assert limited.returncode == 0, limited.stderr
        assert f"at most {_RATE_MIB_S}.0 MiB/s, all disks together" in limited.stdout
    finally:
        shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    job = shared_world.wait_end(job_id)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    assert max(disk["seconds"] for disk in job["disks"]) >= _AT_LEAST_S
    assert int(job["bytes_per_second"]) == _RATE_MIB_S * MIB
    assert f"at most {_RATE_MIB_S}.0 MiB/s" in shared_world.run("job", "show", job_id).stdout
    shared_world.assert_restores(job, shared_lab)
    code, error = shared_world.refused("job", "limit", job_id, "none")
    assert (code, error["reason"]) == (4, "JOB_ENDED")
    records = shared_world.ask("audit", "show", "--limit", "1000")["records"]
    assert [each["act"] for each in records if each["subject"] == job_id and each["act"] == "job.limit"]
