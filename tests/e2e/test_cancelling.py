# SPDX-License-Identifier: Apache-2.0
"""Stopping a job, or the watching of one."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import pytest
from tests.e2e.kit import MIB, Lab, World, data, until

pytestmark = pytest.mark.e2e

_MOMENTS = 12
# Ends early when it is set back to 0.
_LONG_S = 100


@pytest.fixture(scope="module")
def machine(shared_lab: Lab) -> str:
    name = "cancelled"
    first, second = shared_lab.add_vm(name, [96 * MIB, 96 * MIB]).disks
    for key in (first, second):
        shared_lab.write(name, key, 0, data(48 * MIB, key))
    return name


@pytest.mark.timeout(600)
def test_cancelling_at_any_moment_leaves_nothing(shared_world: World, shared_lab: Lab, machine: str) -> None:
    began = time.monotonic()
    whole = shared_world.back_up(machine, "--mode", "full")
    took_s = time.monotonic() - began
    states = set()
    for moment in range(_MOMENTS):
        job = shared_world.ask("backup", "start", machine, "--mode", "full")
        time.sleep(took_s * moment / _MOMENTS)
        done = shared_world.run("job", "cancel", job["job_id"], "--json")
        ended = shared_world.wait_end(job["job_id"])
        states.add(ended["state"])
        if ended["state"] == "JOB_STATE_CANCELLED":
            assert not ended["point_id"]
            assert ended["failure"]["reason"] == "REASON_CANCELLED"
        else:
            # It came too late, and was told so.
            assert ended["state"] == "JOB_STATE_SUCCEEDED"
            assert "JOB_ENDED" in done.stderr
        shared_world.assert_nothing_left((shared_lab, machine))
    assert "JOB_STATE_CANCELLED" in states
    # The good point is as good as before, and the next one can be made.
    shared_world.ask("point", "verify", whole["point_id"])
    shared_world.assert_restores(shared_world.back_up(machine), shared_lab)


def test_cancelling_while_the_snapshot_is_made_removes_it(
    shared_world: World, shared_lab: Lab, machine: str
) -> None:
    shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=_LONG_S)
    try:
        job = shared_world.ask("backup", "start", machine)
        until(
            lambda: shared_world.job(job["job_id"])["phase"] == "JOB_PHASE_SNAPSHOT",
            "the snapshot is being made",
        )
        shared_world.ask("job", "cancel", job["job_id"])
    finally:
        shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    assert shared_world.wait_end(job["job_id"])["state"] == "JOB_STATE_CANCELLED"
    shared_world.assert_nothing_left((shared_lab, machine))


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """For what a test starts."""
    with contextlib.ExitStack() as made:
        yield made


def test_ctrl_c_detaches_and_the_job_goes_on(
    shared_world: World, shared_lab: Lab, machine: str, stack: contextlib.ExitStack
) -> None:
    shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=_LONG_S)
    try:
        starting = stack.enter_context(shared_world.spawn("backup", "start", machine, "--wait"))
        active = {"JOB_STATE_QUEUED", "JOB_STATE_RUNNING"}
        job_id = until(
            lambda: next(
                (job["job_id"] for job in shared_world.ask("job", "list")["jobs"] if job["state"] in active),
                None,
            ),
            "the job runs",
        )
        watching = stack.enter_context(shared_world.spawn("job", "watch", job_id))
        assert watching.stdout is not None
        assert job_id[:8] in watching.stdout.readline()
        for process in (starting, watching):
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
            assert process.returncode == 130, errors
            assert f"detached; job {job_id} goes on" in errors
            assert "Traceback" not in errors
    finally:
        shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    assert shared_world.wait_end(job_id)["state"] == "JOB_STATE_SUCCEEDED"


def test_a_second_job_for_the_same_vm_is_refused(shared_world: World, shared_lab: Lab, machine: str) -> None:
    shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=_LONG_S)
    try:
        job = shared_world.ask("backup", "start", machine)
        code, error = shared_world.refused("backup", "start", machine)
        assert (code, error["reason"]) == (4, "VM_BUSY")
        assert job["job_id"] in error["message"] + str(error["metadata"])
    finally:
        shared_lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    assert shared_world.wait_end(job["job_id"])["state"] == "JOB_STATE_SUCCEEDED"
    code, error = shared_world.refused("job", "cancel", job["job_id"])
    assert (code, error["reason"]) == (4, "JOB_ENDED")
