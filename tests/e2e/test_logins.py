# SPDX-License-Identifier: Apache-2.0
"""A password that vSphere refuses ends a job at once; odd passwords arrive to the byte."""

from __future__ import annotations

import time

import pytest
from tests.e2e.kit import MIB, PASSWORD, USER, Lab, World

pytestmark = pytest.mark.e2e

# Threefold of what the login of a job may take on a quiet machine.
_WITHIN_S = 15.0


@pytest.fixture
def wrong_password(shared_world: World, shared_lab: Lab):
    shared_lab.command("set_password", password="something else")
    yield
    shared_lab.command("set_password", password=PASSWORD)
    shared_world.ask("vcenter", "test", "lab")


def test_ff08_a_refused_login_ends_the_job_and_leaves_nothing(
    shared_world: World, shared_lab: Lab, wrong_password: None
) -> None:
    lab, name = shared_lab, "locked-out"
    lab.command("set_password", password=PASSWORD)
    lab.add_vm(name, [16 * MIB])
    shared_world.ask("vm", "list")
    lab.command("set_password", password="something else")
    directories = sorted(shared_world.repository.glob("*/*/*/**/"))
    refused = lab.counters().get("logins refused", 0)
    began = time.monotonic()
    job = shared_world.ask("backup", "start", name, "--wait", code=1)
    assert time.monotonic() - began < _WITHIN_S
    assert (job["state"], job["ended_in_phase"]) == ("JOB_STATE_FAILED", "JOB_PHASE_SNAPSHOT")
    failure = job["failure"]
    assert failure["reason"] == "REASON_VCENTER_LOGIN_FAILED"
    assert "vim.fault.InvalidLogin" in failure["message"]
    facts = failure["metadata"]
    assert (facts["vm"], facts["vcenter"], facts["fault"]) == (name, lab.name, "vim.fault.InvalidLogin")
    assert lab.counters()["logins refused"] == refused + 1, "it was tried again: accounts get locked"
    assert (job["point_id"], job["disks"]) == ("", [])
    assert sorted(shared_world.repository.glob("*/*/*/**/")) == directories
    shared_world.assert_nothing_left((lab, name))
    assert not shared_world.ask("point", "list", name)["points"]
    people = shared_world.run("job", "show", job["job_id"])
    assert "InvalidLogin" in people.stdout
    assert "something else" not in people.stdout + people.stderr + shared_world.logs()


def test_ff08_a_vm_that_must_be_looked_up_first_fails_the_same_way(
    shared_world: World, shared_lab: Lab, wrong_password: None
) -> None:
    job = shared_world.ask("backup", "start", "never-seen", "--vcenter", "lab", "--wait", code=1)
    assert job["state"] == "JOB_STATE_FAILED"
    assert job["failure"]["reason"] == "REASON_VCENTER_LOGIN_FAILED"
    assert job["failure"]["metadata"]["vm"] == "never-seen"


def test_rule_24_a_refused_password_is_tried_by_nothing_until_it_was_changed(
    shared_world: World, shared_lab: Lab
) -> None:
    world, lab, name = shared_world, shared_lab, "waits-for-a-password"
    lab.add_vm(name, [4 * MIB])
    world.ask("vm", "list")
    lab.command("set_password", password="changed at the vCenter")
    before = lab.counters()
    jobs = [world.ask("backup", "start", name, "--wait", code=1) for _ in range(2)]
    assert {job["failure"]["reason"] for job in jobs} == {"REASON_VCENTER_LOGIN_FAILED"}
    assert jobs[1]["ended_in_phase"] == "JOB_PHASE_PREPARE"
    assert "nothing logs in" in jobs[1]["failure"]["message"]
    assert "vcenter password" in jobs[1]["failure"]["remedy"]
    for asked in (("vm", "list"), ("vm", "check", name)):
        assert world.refused(*asked)[1]["reason"] == "VCENTER_LOGIN_FAILED"
    assert lab.counters()["logins"] == before["logins"] + 1
    (listed,) = [each for each in world.ask("vcenter", "list")["vcenters"] if each["name"] == "lab"]
    assert listed["login_refused_time"]
    assert "refused 20" in world.run("vcenter", "list").stdout
    checks = {each["name"]: each for each in world.ask("doctor", code=1)["checks"]}
    assert checks["vcenter.lab"]["status"] == "CHECK_STATUS_ERROR"
    assert lab.counters()["logins"] == before["logins"] + 1, "looking at it is no login either"

    world.ask("vcenter", "password", "lab", "--username", USER, "--password-stdin",
              secret="changed at the vCenter\n")  # fmt: skip
    assert lab.counters()["logins"] == before["logins"] + 1
    world.back_up(name)
    assert {each["name"]: each for each in world.ask("doctor")["checks"]}["vcenter.lab"]["status"] == (
        "CHECK_STATUS_OK"
    )
    lab.command("set_password", password=PASSWORD)
    world.ask("vcenter", "password", "lab", "--username", USER, "--password-stdin", secret=PASSWORD + "\n")


@pytest.mark.parametrize(
    "password",
    [
        "+starts-with-plus",
        "-starts-with-minus",
        "\"quotes'and\\backslash$HOME`id`#%41",
        "  blanks at both ends  ",
        "пароль-密码-ñ-🔑",
        "x" * 127 + "!",
    ],
)
def test_ff23_odd_passwords_work_from_end_to_end(shared_world: World, shared_lab: Lab, password: str) -> None:
    shared_lab.command("set_password", password=password)
    try:
        shared_world.ask(
            "vcenter", "password", "lab", "--username", USER, "--password-stdin", secret=password + "\n"
        )
        assert "simulated" in shared_world.ask("vcenter", "test", "lab")["full_name"]
    finally:
        shared_lab.command("set_password", password=PASSWORD)
        shared_world.ask(
            "vcenter", "password", "lab", "--username", USER, "--password-stdin", secret=PASSWORD + "\n"
        )


def test_ff24_what_is_wrong_with_a_vcenter_is_told_apart(shared_world: World, shared_lab: Lab) -> None:
    world, lab = shared_world, shared_lab
    added = ["--username", USER, "--password-stdin"]
    pinned = "00" * 32
    world.ask(
        "vcenter", "add", "pinned", "--address", lab.address, *added, "--thumbprint", pinned, secret="x"
    )
    assert world.refused("vcenter", "test", "pinned")[1]["reason"] == "VCENTER_CERTIFICATE_NOT_TRUSTED"
    world.ask("vcenter", "remove", "pinned")
    world.ask(
        "vcenter", "add", "nobody", "--address", "127.0.0.1:1", *added, "--thumbprint", pinned, secret="x"
    )
    code, error = world.refused("vcenter", "test", "nobody")
    assert (code, error["reason"]) == (5, "VCENTER_UNREACHABLE")
    world.ask("vcenter", "remove", "nobody")
    world.ask("vcenter", "add", "wrong", "--address", lab.address, *added, "--ca-file", str(lab.ca_file),
              secret="wrong password")  # fmt: skip
    code, error = world.refused("vcenter", "test", "wrong")
    assert (code, error["reason"]) == (4, "VCENTER_LOGIN_FAILED")
    world.ask("vcenter", "remove", "wrong")
