# SPDX-License-Identifier: Apache-2.0
"""A password that vSphere refused is tried by nothing until it was changed or tested."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.audit_log.kit import no_room, records
from tests.integration.hub.kit import Hub, hub_of, until, world
from tests.integration.hub.scripted_agent import MACHINE, VCENTER, ScriptedJob, backup

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, vcenters
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.jobs import guarded_sites
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper

pytestmark = pytest.mark.integration


@pytest.fixture
async def hub(short_tmp: Path) -> AsyncIterator[Hub]:
    async with world(short_tmp) as made, hub_of(made) as running:
        yield running


async def refused(job: ScriptedJob) -> None:
    """An agent whose login does not work."""
    await job.phase(agent.AGENT_PHASE_LOGIN)
    await job.fail(Reason.REASON_VCENTER_LOGIN_FAILED, message="vim.fault.InvalidLogin")


async def vcenter(hub: Hub) -> Vcenter:
    return await hub.catalog.run(lambda connection: vcenters.get(connection, VCENTER))


def logins(hub: Hub) -> int:
    return len(hub.agent.starts) + hub.agent.logins_count


async def test_rule_24_after_a_refusal_neither_jobs_nor_lists_nor_sweeps_nor_checks_log_in(hub: Hub):
    hub.agent.script = refused
    first = await hub.run()
    assert first.failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert "InvalidLogin" in first.failure.message
    assert logins(hub) == 1
    assert (await vcenter(hub)).HasField("login_refused_time")

    hub.agent.script = backup({})
    second = await hub.run()
    assert second.failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert second.ended_in_phase == pb.JOB_PHASE_PREPARE
    assert not second.failure.retryable
    assert second.failure.metadata["refused_since"]
    assert "sendense vcenter password" in second.failure.remedy
    assert "InvalidLogin" in second.failure.message
    sites, known = hub.workshop.sites, await vcenter(hub)
    for ask in (
        sites.virtual_machines(known),
        sites.check_machine(known, "hub", MACHINE, "web"),
        sites.clean_up(known, "hub", [("job", MACHINE)]),
        SnapshotSweeper(hub.catalog, sites).sweep(PendingCleanup("dead", VCENTER, MACHINE, "web")),
    ):
        with pytest.raises(SendenseError) as caught:
            await ask
        assert caught.value.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert logins(hub) == 1
    await hub.assert_nothing_left()
    assert await hub.catalog.run(cleanups.listed) == []


async def test_rule_24_a_test_that_works_lets_jobs_go_on_and_one_that_fails_does_not(hub: Hub):
    hub.agent.script = refused
    await hub.run()
    hub.agent.refuses_logins = True
    with pytest.raises(SendenseError, match="InvalidLogin"):
        await hub.workshop.sites.test_vcenter(await vcenter(hub))
    assert hub.agent.logins_count == 1, "a person may try"
    assert (await vcenter(hub)).HasField("login_refused_time")
    hub.agent.refuses_logins = False
    await hub.workshop.sites.test_vcenter(await vcenter(hub))
    assert not (await vcenter(hub)).HasField("login_refused_time")
    hub.agent.script = backup({})
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED


async def test_rule_24_a_changed_password_lets_jobs_go_on(hub: Hub):
    hub.agent.script = refused
    await hub.run()
    await hub.workshop.sites.lift(VCENTER)
    hub.agent.script = backup({})
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED
    with pytest.raises(SendenseError) as caught:
        await hub.workshop.sites.lift("elsewhere")
    assert caught.value.reason == Reason.REASON_VCENTER_NOT_FOUND


async def test_rule_24_a_refusal_is_remembered_by_a_hub_that_was_restarted(short_tmp: Path):
    async with world(short_tmp) as made:
        async with hub_of(made) as before:
            before.agent.script = refused
            await before.run()
        async with hub_of(made, register=False) as after:
            job = await after.run()
            assert job.failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
            assert logins(after) == 1
            assert (await vcenter(after)).HasField("login_refused_time")


async def test_a_block_is_recorded_before_it_counts_and_holds_when_it_cannot_be_recorded(
    hub: Hub, tmp_path: Path
):
    async with audit_log.opened(tmp_path / "audit-log", "hub") as log:
        hub.agent.script = refused
        await hub.run()
        credential_id = (await vcenter(hub)).credential_id
        (block,) = records(log, "credential.block")
        assert (block.subject, block.actor) == (credential_id, "system:hub")
        assert block.facts == {"vcenter": VCENTER, "reason": "VCENTER_LOGIN_FAILED"}

        with no_room(), pytest.raises(SendenseError) as unrecorded:
            await hub.workshop.sites.lift(VCENTER)
        assert unrecorded.value.reason == Reason.REASON_AUDIT_LOG_UNAVAILABLE
        assert (await vcenter(hub)).HasField("login_refused_time")
        for _ in range(2):
            await hub.workshop.sites.lift(VCENTER)
        assert [each.subject for each in records(log, "credential.unblock")] == [credential_id]

        hub.agent.refuses_logins = True
        with no_room(), pytest.raises(SendenseError) as caught:
            await hub.workshop.sites.virtual_machines(await vcenter(hub))
        assert caught.value.reason == Reason.REASON_VCENTER_LOGIN_FAILED
        assert (await vcenter(hub)).HasField("login_refused_time")


async def test_rule_24_a_refusal_counts_for_every_vcenter_with_the_same_credential(hub: Hub):
    other = await vcenter(hub)
    other.name = "other"
    await hub.catalog.run(lambda connection: vcenters.add(connection, other))
    hub.agent.refuses_logins = True
    for name in (VCENTER, "other"):
        asked = await hub.catalog.run(functools.partial(vcenters.get, name=name))
        with pytest.raises(SendenseError) as caught:
            await hub.workshop.sites.virtual_machines(asked)
        assert caught.value.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert logins(hub) == 1


async def test_a_locked_account_keeps_everything_from_logging_in_too(hub: Hub):
    async def locked(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await job.fail(Reason.REASON_VCENTER_ACCOUNT_LOCKED, message="User account is locked")

    hub.agent.script = locked
    assert (await hub.run()).failure.reason == Reason.REASON_VCENTER_ACCOUNT_LOCKED
    again = await hub.run()
    assert "User account is locked" in again.failure.message
    assert logins(hub) == 1


async def test_rule_24_jobs_that_come_together_try_a_wrong_password_once(hub: Hub):
    hub.agent.script = refused
    jobs = [
        await hub.run_later(vm_instance_uuid=f"{MACHINE[:-2]}{number:02}", vm_name=f"web{number}")
        for number in range(20)
    ]
    ended = await asyncio.gather(*jobs)
    assert {job.failure.reason for job in ended} == {Reason.REASON_VCENTER_LOGIN_FAILED}
    assert logins(hub) == 1, "single sign-on locks an account after five"


async def test_logins_that_work_do_not_wait_for_the_end_of_each_other_s_backups(hub: Hub):
    async def stays(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        await job.hear("cancel")

    hub.agent.script = stays
    _, task = await hub.begin()
    await until(lambda: hub.agent.jobs and hub.agent.job.acked >= 2, "the first has logged in")
    async with asyncio.timeout(20):
        await hub.workshop.sites.virtual_machines(await vcenter(hub))
    assert not task.done()


async def test_a_login_that_hangs_does_not_keep_the_next_one_for_ever(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(guarded_sites, "_LOGIN_WITHIN_S", 0.05)

    async def hangs(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await job.hear("cancel")

    hub.agent.script = hangs
    await hub.begin()
    await until(lambda: hub.agent.jobs, "the first has begun")
    async with asyncio.timeout(20):
        await hub.workshop.sites.virtual_machines(await vcenter(hub))


async def test_a_refusal_of_a_password_that_was_changed_since_is_none_of_the_new_one(hub: Hub):
    going_on = asyncio.Event()

    async def loses_its_session(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        await going_on.wait()
        await job.fail(Reason.REASON_VCENTER_LOGIN_FAILED, message="vim.fault.InvalidLogin")

    hub.agent.script = loses_its_session
    job, task = await hub.begin()
    await until(lambda: hub.agent.jobs and hub.agent.job.acked >= 2, "it has logged in")
    await hub.workshop.sites.lift(VCENTER)
    going_on.set()
    await task
    assert (await hub.job(job.job_id)).failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert not (await vcenter(hub)).HasField("login_refused_time")


async def test_the_refusal_of_a_vcenter_that_was_removed_is_forgotten(hub: Hub):
    hub.agent.script = refused
    await hub.run()
    known = await vcenter(hub)
    await hub.catalog.run(lambda connection: vcenters.remove(connection, VCENTER))
    known.ClearField("login_refused_time")
    await hub.catalog.run(lambda connection: vcenters.add(connection, known))
    assert not (await vcenter(hub)).HasField("login_refused_time")
