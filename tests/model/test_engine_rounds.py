# SPDX-License-Identifier: Apache-2.0
"""500 steps of VMs' lives with backups by the copy engine; each complete point restores byte for byte."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys

import pytest
from tests.mutants.mutants import ROOT

pytestmark = pytest.mark.integration

_STEPS, _LIVES = 50, 5


@pytest.mark.timeout(600)
def test_every_complete_point_restores_what_the_disks_held() -> None:
    """Two processes, for two cores; what they say has the seed to play it again."""
    seed = secrets.randbits(32)
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.model.soak", "--level=engine", f"--seed={seed + number}",
             f"--lives={_LIVES}", f"--steps={_STEPS}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [run.communicate()[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    for run, words in zip(runs, said, strict=True):
        assert run.returncode == 0, words
        assert (ended := re.search(r"^(\d+) rounds passed, 0 failed$", words, re.MULTILINE)), words
        assert int(ended[1]) >= 30, words
