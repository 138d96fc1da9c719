# SPDX-License-Identifier: Apache-2.0
"""`sendense vm check`: what an operator sees before the first backup."""

from __future__ import annotations

import pytest
from tests.e2e.kit import MIB, Lab, World

pytestmark = pytest.mark.e2e


def test_what_would_keep_a_backup_from_working_is_said_before(shared_world: World, shared_lab: Lab) -> None:
    shared_lab.add_vm("before-use", [4 * MIB])
    answer = shared_world.ask("vm", "check", "before-use")
    checks = {each["name"]: each for each in answer["checks"]}
    assert {each["status"] for each in checks.values()} == {"CHECK_STATUS_OK"}, checks
    assert {"privileges", "disk.2000", "datastore.datastore1", "repository.default"} <= checks.keys()
    assert (shared_lab.state("before-use")["changed_block_tracking"], shared_lab.left("before-use")) == (
        False,
        [],
    )

    shared_lab.command("set", missing_privileges=["VirtualMachine.State.CreateSnapshot"])
    try:
        done = shared_world.run("vm", "check", "before-use")
    finally:
        shared_lab.command("set", missing_privileges=[])
    assert done.returncode == 1
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("privileges")]
    assert "error" in line
    assert "CreateSnapshot" in done.stdout
    code, error = shared_world.refused("vm", "check", "nobody")
    assert (code, error["reason"]) == (3, "VM_NOT_FOUND")
