# SPDX-License-Identifier: Apache-2.0
"""The same model through the whole system: at least twenty backups, restored by the hub's exports."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from tests.e2e.kit import World
from tests.model.soak import play, say
from tests.model.system_rounds import SystemRounds

pytestmark = pytest.mark.e2e

_LIVES, _STEPS = 2, 10  # the first life of a go is always the simplest: nothing happens


@pytest.mark.timeout(600)
def test_twenty_rounds_through_the_whole_system_restore_what_the_disks_held(
    fresh_world: World, tmp_path: Path
) -> None:
    rounds = SystemRounds(fresh_world, tmp_path)
    seed = secrets.randbits(32)
    while rounds.round_count < 20:
        say(f"replay with: make soak SEED={seed} LEVEL=system LIVES={_LIVES} STEPS={_STEPS}")
        play(rounds, seed=seed, lives=_LIVES, steps=_STEPS, said=say)
        seed += 1
