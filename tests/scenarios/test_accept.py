# SPDX-License-Identifier: Apache-2.0
"""`sendense-lab accept` against the simulated vCenter: a table, a report, and nothing left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import MIB, USER, Lab, World, data

from sendense_lab.accept import CHECKS
from sendense_lab.scenarios import read, shipped

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

# All of them take two minutes: `make scenarios`.
_ASKED = list(CHECKS) if os.environ.get("SENDENSE_SCENARIOS") == "all" else ["twice", "snapshot-deleted"]
_STORES = """
title = "Two datastores"
[outside]
cannot = "for a test"
[[datastores]]
name = "datastore1"
[[datastores]]
name = "datastore2"
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("accept")
    (directory / "stores.toml").write_text(_STORES)
    made = Lab(directory / "lab", options=["--scenario", str(directory / "stores.toml")])
    yield made
    made.stop()


def accept(world: World, lab: Lab, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sendense_lab.main", "accept", "--state", str(world.installation.state),
         "--vcenter", lab.address, "--username", USER, "--password-file", str(lab.directory / "password"),
         "--ca-file", str(lab.ca_file), *options],
        capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "COLUMNS": "140"},
    )  # fmt: skip


def test_it_refuses_without_a_word_that_the_vm_may_be_destroyed(
    scenario_world: World, lab: Lab, tmp_path: Path
) -> None:
    lab.add_vm("precious", [8 * MIB])
    before = lab.counters().get("logins", 0)
    for options in ([], ["--i-may-destroy-this-vm", "another"]):
        done = accept(scenario_world, lab, "--vm", "precious", "--output", str(tmp_path / "r.json"), *options)
        assert done.returncode == 2
        assert "--i-may-destroy-this-vm" in done.stderr
    assert lab.counters().get("logins", 0) == before
    assert not (tmp_path / "r.json").exists()


def test_what_can_be_provoked_passes_and_the_rest_says_why(
    scenario_world: World, lab: Lab, tmp_path: Path
) -> None:
    name, report_file = "throw-away", tmp_path / "report.json"
    machine = lab.add_vm(
        name, [48 * MIB + 512, 8 * MIB, {"capacity_bytes": 8 * MIB, "disk_mode": "independent_persistent"}]
    )
    lab.write(name, machine.disks[0], 0, data(40 * MIB, "accept"))
    lab.command("set", read_seconds=0.02)  # so that there is time to delete a snapshot
    done = accept(
        scenario_world, lab, "--vm", name, "--i-may-destroy-this-vm", name, "--move-to", "datastore2",
        "--output", str(report_file), *(f"--only={check}" for check in _ASKED),
    )  # fmt: skip
    lab.command("set", read_seconds=0)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(report_file.read_text())
    rows = {row["scenario"]: row for row in report["vms"][name]}
    assert set(rows) == set(shipped())
    for scenario, row in rows.items():
        asked = read(shipped()[scenario]).outside.provoke in _ASKED
        assert row["outcome"] == ("passed" if asked else "cannot"), row
        assert row["why"] or row["seen"], row
        assert scenario in done.stdout
    assert any("SHA-256" in each for each in rows["plain"]["seen"])
    assert "simulated" in report["vcenter"]
    assert lab.left(name) == []
    names = {each["name"] for each in scenario_world.ask("vcenter", "list")["vcenters"]}
    assert not {each for each in names if each.startswith("accept-")}


def test_what_goes_wrong_fails_and_is_said(scenario_world: World, lab: Lab, tmp_path: Path) -> None:
    name, report_file = "wronged", tmp_path / "report.json"
    lab.add_vm(name, [8 * MIB])
    lab.command("set", areas_wrong="outside_page")
    done = accept(
        scenario_world, lab, "--vm", name, "--i-may-destroy-this-vm", name, "--only=twice",
        "--output", str(report_file),
    )  # fmt: skip
    lab.command("set", areas_wrong="")
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = [row for row in json.loads(report_file.read_text())["vms"][name] if row["outcome"] == "failed"]
    assert row["scenario"] == "plain"
    assert row["why"]
    assert "FAILED" in done.stdout


def test_every_check_provokes_a_scenario_and_every_scenario_names_a_check_that_there_is() -> None:
    provoked = {read(file).outside.provoke for file in shipped().values()} - {""}
    assert provoked == set(CHECKS)
