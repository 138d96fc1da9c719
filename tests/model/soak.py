# SPDX-License-Identifier: Apache-2.0
"""Running the model: a number of steps for a test, or for hours with `make soak SEED=… HOURS=…`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import core as hypothesis_core
from hypothesis.stateful import run_state_machine_as_test
from tests.e2e.kit import world
from tests.model.engine_rounds import EngineRounds, Stage
from tests.model.machine import Rounds, state_machine
from tests.model.system_rounds import SystemRounds

_LIVES_AT_ONCE = 20
"""In one go of a soak; then the stage is made anew."""


def play(rounds: Rounds, *, seed: int, steps: int, said: Callable[[str], None], lives: int) -> None:
    """Plays `lives` VMs with `steps` steps each; the same seed plays the same.

    Raises: what went wrong first. A failure is played again, and would be called flaky where time matters.
    """
    failures: list[Exception] = []
    forced: Any = hypothesis_core
    before, forced.global_force_seed = forced.global_force_seed, seed
    try:
        run_state_machine_as_test(
            state_machine(rounds, said, failures.append),
            settings=hypothesis.settings(
                max_examples=lives,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # a failure is replayed by its seed; shrinking would take hours
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
    except hypothesis.errors.Flaky as flaky:
        raise (failures[0] if failures else flaky) from flaky
    finally:
        forced.global_force_seed = before


def engine(seed: int, *, lives: int, steps: int) -> int:
    """Rounds through the copy engine; gives how many."""
    with directory() as place, asyncio.Runner() as runner, Stage(place, runner) as stage:
        rounds = EngineRounds(stage)
        play(rounds, seed=seed, lives=lives, steps=steps, said=say)
        rounds.verified()
        return rounds.round_count


def system(seed: int, *, lives: int, steps: int) -> int:
    """Rounds through the whole system; gives how many."""
    with directory() as place, world(place) as running:
        rounds = SystemRounds(running, place)
        play(rounds, seed=seed, lives=lives, steps=steps, said=say)
        return rounds.round_count


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """With a short path, for unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Runs until the hours are over; the first failure ends it with its seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--hours", type=float, default=0.0, help="0: one go")
    parser.add_argument("--level", choices=["both", "engine", "system"], default="both")
    parser.add_argument("--lives", type=int, default=_LIVES_AT_ONCE, help="VMs of one go")
    parser.add_argument("--steps", type=int, default=50, help="of one VM's life")
    wanted = parser.parse_args()
    levels = [each for each in (engine, system) if wanted.level in {"both", each.__name__}]
    deadline = time.monotonic() + wanted.hours * 3600
    seed, rounds = wanted.seed, 0
    while True:
        for level in levels:
            again = f"SEED={seed} LEVEL={level.__name__} LIVES={wanted.lives} STEPS={wanted.steps}"
            say(f"replay with: make soak {again}")
            try:
                rounds += level(seed, lives=wanted.lives, steps=wanted.steps)
            except BaseException:
                say(f"failed after {rounds} rounds; replay with: make soak {again}")
                raise
        seed += 1
        if time.monotonic() >= deadline:
            break
    say(f"{rounds} rounds passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
