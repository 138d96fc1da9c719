# SPDX-License-Identifier: Apache-2.0
"""Snapshots that ended jobs may have left are removed later, carefully."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from tests.integration.hub.kit import Hub, until
from tests.integration.hub.scripted_agent import MACHINE, VCENTER

from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.catalog import cleanups, jobs, vcenters
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.jobs import snapshot_sweeper
from sendense_hub.jobs.board import end
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper

pytestmark = pytest.mark.integration

LEFT = PendingCleanup("dead-job", VCENTER, MACHINE, "web")
OTHER = PendingCleanup("other-job", VCENTER, "another-vm", "web")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round follows the last one at once."""
    monkeypatch.setattr(snapshot_sweeper, "_EVERY_S", 0.02)


@contextlib.contextmanager
def sweeping(hub: Hub) -> Iterator[asyncio.Task[None]]:
    sweeper = SnapshotSweeper(hub.catalog, hub.workshop.sites)
    task: asyncio.Task[None] = asyncio.create_task(sweeper.run())
    hub.tasks.append(task)
    yield task
    assert not task.done(), "it goes on whatever happens"


async def remember(hub: Hub, *pending: PendingCleanup) -> None:
    for each in pending:
        await hub.catalog.run(lambda connection, each=each: cleanups.add(connection, each))  # type: ignore[misc]


async def listed(hub: Hub) -> list[str]:
    return [each.job_id for each in await hub.catalog.run(cleanups.listed)]


async def test_what_is_left_is_removed_as_soon_as_the_agent_can(hub: Hub):
    hub.agent.cleans = False
    await remember(hub, LEFT)
    with sweeping(hub):
        await until(lambda: len(hub.agent.cleaned) > 2, "it tries again")
        assert await listed(hub) == ["dead-job"], "it is not forgotten before it is gone"
        hub.agent.cleans = True
        async with asyncio.timeout(20):
            while await listed(hub):  # noqa: ASYNC110 - only the catalog knows
                await asyncio.sleep(0.01)


async def test_rule_16_a_vm_with_a_job_is_left_to_the_job(hub: Hub):
    job = await hub.accept()
    await remember(hub, LEFT, OTHER)
    with sweeping(hub):
        await until(lambda: "other-job" in hub.agent.cleaned, "the other VM is swept")
        assert "dead-job" not in hub.agent.cleaned
        ended = pb.Job()
        ended.CopyFrom(job)
        end(ended, pb.JOB_STATE_CANCELLED)
        await hub.catalog.run(lambda connection: jobs.write(connection, ended))
        await until(lambda: "dead-job" in hub.agent.cleaned, "then this one too")


async def test_rule_24_a_refused_password_is_not_tried_again(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    rounds = [0]
    real = cleanups.listed

    def counted(connection: sa.Connection) -> list[PendingCleanup]:
        rounds[0] += 1
        return real(connection)

    monkeypatch.setattr(cleanups, "listed", counted)

    hub.agent.refuses_logins = True
    await remember(hub, LEFT)
    with sweeping(hub):
        await until(lambda: hub.agent.logins_count, "the first time")
        await remember(hub, OTHER)
        now = rounds[0]
        await until(lambda: rounds[0] > now + 5, "five more rounds")
        assert hub.agent.logins_count == 1, "also not for another job with the same password"
        hub.agent.refuses_logins = False
        await hub.workshop.sites.lift(VCENTER)
        await until(
            lambda: {"dead-job", "other-job"} <= set(hub.agent.cleaned), "after the password was changed"
        )


async def test_a_defect_in_one_round_does_not_end_the_rounds(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    rounds = [0]
    real = cleanups.listed

    def broken(connection: sa.Connection) -> list[PendingCleanup]:
        rounds[0] += 1
        if rounds[0] < 3:
            raise KeyError("forced")
        return real(connection)

    await remember(hub, LEFT)
    monkeypatch.setattr(cleanups, "listed", broken)
    with sweeping(hub):
        await until(lambda: hub.agent.cleaned, "the third round works")


async def test_a_vcenter_that_was_removed_is_not_asked(hub: Hub):
    await remember(hub, LEFT)
    await hub.catalog.run(lambda connection: vcenters.remove(connection, VCENTER))
    await SnapshotSweeper(hub.catalog, hub.workshop.sites).sweep(LEFT)
    assert await listed(hub) == []
    assert hub.agent.cleaned == []
