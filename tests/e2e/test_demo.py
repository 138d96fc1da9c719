# SPDX-License-Identifier: Apache-2.0
"""The demonstration does what it says, at its full size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.kit import GIB, MIB

from sendense_lab.demo import leftovers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_the_demonstration_proves_both_points_and_leaves_nothing(tmp_path: Path) -> None:
    output, directory = tmp_path / "facts" / "demo.json", tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "sendense_cli.main", "demo",
         "--output", str(output), "--directory", str(directory), "--json"],
        env={**os.environ, "COLUMNS": "100", "SENDENSE_TEST": str(tmp_path)},
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(output.read_text())
    assert json.loads(done.stdout) == facts
    assert (facts["ok"], facts["leftovers"], facts["stock_tools_agree"]) == (True, [], True)
    capacities = {disk["key"]: disk["capacity_bytes"] for disk in facts["full"]["disks"]}
    assert len(set(capacities.values())) == 2
    assert sum(capacities.values()) >= 2 * GIB
    assert sum(disk["copied_bytes"] for disk in facts["full"]["disks"]) >= 500 * MIB
    for mode in ("full", "incremental"):
        for disk in facts[mode]["disks"]:
            assert (disk["mode"], disk["sha256"]) == (mode, disk["source_sha256"])
            assert 0 < disk["wire_bytes"] <= disk["copied_bytes"] * 1.05
            assert disk["seconds"] > 0
    for full, incremental in zip(facts["full"]["disks"], facts["incremental"]["disks"], strict=True):
        assert full["sha256"] != incremental["sha256"]
        assert 0 < incremental["copied_bytes"] < full["copied_bytes"]
    assert {"sendense-hub", "sendense-agent", "sendense-credentials", "sendense-cli"} == set(
        facts["trace"]["services"]
    )
    assert facts["trace"]["span_count"] > 10
    assert not directory.exists()
    assert leftovers.of_processes("SENDENSE_TEST", str(tmp_path)) == []
