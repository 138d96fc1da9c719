# SPDX-License-Identifier: Apache-2.0
"""Every scenario that is shipped, through the whole system.

What its file expects is compared. Whatever it is about, each complete point restores what the disks held at
the snapshot, no snapshot of ours and no session is left, and the job names what it did not protect.
"""

from __future__ import annotations

import os

import pytest
from tests.scenarios.stage import Played

from sendense_lab.scenarios import read, shipped

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_ALL = os.environ.get("SENDENSE_SCENARIOS") == "all"
_NAMES = [name for name, file in shipped().items() if _ALL or read(file).fast]


@pytest.mark.parametrize("scenario", _NAMES)
def test_what_a_scenario_expects(scenario: str, played: dict[str, Played | BaseException]) -> None:
    outcome = played[scenario]
    if isinstance(outcome, BaseException):
        raise outcome
    assert not outcome.problems, "\n".join(outcome.problems)
