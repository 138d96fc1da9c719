# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.limits import GIB, Limits
from sendense_agent.vsphere import Space
from sendense_agent.worker.watch import SnapshotWatch, below_floor
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

PLENTY = Space("ds1", 500 * GIB, 1000 * GIB, accessible=True)
FULL = Space("ds2", 49 * GIB, 1000 * GIB, accessible=True)
WITHIN_S = 10.0


@dataclass
class World:
    """What a watch sees, and what it says."""

    looks: list[list[Space] | SendenseError] = field(default_factory=lambda: [[PLENTY]])
    """One after another; the last one stays."""
    now: float = 0.0
    step_s: float = 0.0
    """By which each look at the clock is later."""
    warned: list[tuple[str, str]] = field(default_factory=list)
    looked_count: int = 0

    def clock(self) -> float:
        self.now += self.step_s
        return self.now

    async def spaces(self) -> list[Space]:
        self.looked_count += 1
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, SendenseError):
            raise found
        return found

    async def warn(self, code: str, message: str) -> None:
        self.warned.append((code, message))

    def watch(self, **changed: float) -> SnapshotWatch:
        limits = Limits(**{"look_every_s": 0.001, **changed})  # type: ignore[arg-type]
        return SnapshotWatch(limits, "web", self.spaces, self.warn, self.clock)


async def test_rule_17_a_datastore_that_fills_up_ends_the_backup():
    world = World([[PLENTY, PLENTY], [PLENTY], [PLENTY, FULL]])
    error = await asyncio.wait_for(world.watch().run(), WITHIN_S)
    assert error.reason == Reason.REASON_DATASTORE_FULL
    assert "datastore ds2 has 49.0 GiB free, less than the 50.0 GiB" in error.message
    assert error.metadata["datastore"] == "ds2"
    assert "Make room" in error.remedy
    assert world.looked_count == 3


async def test_a_vcenter_that_does_not_answer_for_a_moment_ends_nothing():
    world = World([SendenseError(Reason.REASON_VCENTER_UNREACHABLE, "no"), [PLENTY], [FULL]])
    error = await asyncio.wait_for(world.watch().run(), WITHIN_S)
    assert (error.reason, world.looked_count) == (Reason.REASON_DATASTORE_FULL, 3)


async def test_rule_17_a_snapshot_warns_at_half_its_age_and_ends_at_all_of_it():
    world = World(step_s=700.0)
    error = await asyncio.wait_for(world.watch(max_snapshot_age_s=7200).run(), WITHIN_S)
    assert error.reason == Reason.REASON_SNAPSHOT_TOO_OLD
    assert world.now >= 7200
    ((code, words),) = world.warned
    assert code == "snapshot_old"
    assert "at 2.0 h the agent removes it" in words


async def test_an_age_that_matters_is_not_slept_over():
    world = World()
    watch = world.watch(look_every_s=3600, max_snapshot_age_s=0.2)
    looking = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    world.now = 0.2
    assert (await asyncio.wait_for(looking, WITHIN_S)).reason == Reason.REASON_SNAPSHOT_TOO_OLD


@pytest.mark.parametrize(
    ("space", "full"),
    [
        (Space("d", 50 * GIB, 1000 * GIB, accessible=True), False),
        (Space("d", 50 * GIB - 1, 1000 * GIB, accessible=True), True),
        (Space("d", 10 * GIB - 1, 20 * GIB, accessible=True), True),
        (Space("d", 0, 0, accessible=False), False),
    ],
)
def test_what_is_below_the_floor(space: Space, full: bool):
    error = below_floor([PLENTY, space], Limits(), "web", "no snapshot was made")
    assert (error is not None) == full
    if error is not None:
        assert error.message.endswith("no snapshot was made")
        assert not error.retryable
