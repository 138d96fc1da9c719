# SPDX-License-Identifier: Apache-2.0
"""A short run of `make chaos`, as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.chaos.run import ROOT

pytestmark = pytest.mark.e2e

_SEED, _ROUNDS, _FAULTS, _SECONDS = 20, 4, 12, 200


@pytest.mark.timeout(600)
def test_backups_survive_what_goes_wrong_and_tell_the_truth_about_it():
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.chaos.run",
            f"--seed={_SEED}", f"--rounds={_ROUNDS}", f"--faults={_FAULTS}", f"--seconds={_SECONDS}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=590, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-4_000:]
    report = json.loads((ROOT / "build" / "chaos.json").read_text())
    assert report["identical"] == report["completed"] > 0
    assert len(report["faults"]) > 5
