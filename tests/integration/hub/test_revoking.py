# SPDX-License-Identifier: Apache-2.0
"""A site that is put out: its jobs fail by that, and nothing is asked of its agent any more."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.hub.kit import Hub, World, hub_of, new_job, until
from tests.integration.hub.scripted_agent import SITE, ScriptedJob, plan_of
from tests.integration.hub.test_waker import Queue

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import site_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, jobs, sites
from sendense_hub.catalog.jobs import Origin
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.jobs.snapshot_sweeper import SnapshotSweeper
from sendense_hub.jobs.waker import Waker

pytestmark = pytest.mark.integration

PATIENT = Patience()
FIRST = {2000: {0: b"a" * 65536}}


async def copy_and_wait(job: ScriptedJob) -> None:
    """An agent that is in the middle of a copy."""
    (export,) = await job.snapshot_and_plan(plan_of())
    await job.copy(export, FIRST[2000], done=False)
    await asyncio.Event().wait()


def assert_failed_by_it(job: pb.Job) -> None:
    assert (job.state, job.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_SITE_REVOKED)
    assert SITE in job.failure.message
    assert "invite" in job.failure.remedy


async def test_a_running_backup_fails_at_once_and_leaves_nothing_at_the_hub(world: World):
    async with hub_of(world, patience=PATIENT) as hub:
        hub.agent.script = copy_and_wait
        job, task = await hub.begin()
        await until(lambda: job.job_id in hub.agent.jobs and hub.agent.job.acked >= 4, "it copies")
        async with asyncio.timeout(5):  # an agent that does not answer any more is not waited for
            _, failed = await Enrolment(hub.workshop).revoke(SITE)
            await task
        assert failed == [job.job_id]
        ended = await hub.job(job.job_id)
        assert_failed_by_it(ended)
        assert [warning.code for warning in ended.warnings] == ["snapshot_left"]
        assert hub.agent.job.count("cancel") == 0  # nobody talks to it
        await hub.assert_nothing_left()
        # What it left is remembered for the day the site is let in again, and not tried before.
        assert [each.job_id for each in await hub.catalog.run(cleanups.listed)] == [job.job_id]
        assert await SnapshotSweeper(hub.catalog, hub.workshop.sites).round() == []
        assert hub.agent.cleaned == []


async def test_a_backup_whose_point_is_complete_has_succeeded(world: World):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000])
        await job.say(copied={})
        await job.hear("committed")
        await asyncio.Event().wait()

    async with hub_of(world, patience=PATIENT) as hub:
        hub.agent.script = script
        job, task = await hub.begin()
        await until(lambda: job.job_id in hub.agent.jobs and hub.agent.job.count("committed"), "the commit")
        await Enrolment(hub.workshop).revoke(SITE)
        await hub.agent.job.drop(None)  # as its connections are cut
        await asyncio.wait_for(task, 30)
        ended = await hub.job(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED
        assert [point.point_id for point in await hub.points()] == [ended.point_id]


async def test_a_waiting_backup_gets_its_turn_at_once_and_fails_there(world: World):
    async with hub_of(world, patience=PATIENT) as hub:
        job = new_job(state=pb.JOB_STATE_WAITING, attempt=1)
        one = job.interruptions.add(attempt=1, failure=Failure(reason=Reason.REASON_SITE_OFFLINE))
        one.time.GetCurrentTime()
        one.next_try_time.FromSeconds(one.time.seconds + 3600)
        await hub.catalog.run(lambda connection: jobs.insert(connection, job, Origin(job.job_id, "")))
        await Enrolment(hub.workshop).revoke(SITE)
        queue = Queue()
        await Waker(hub.workshop, queue, PATIENT)._round()
        assert queue.turns.get_nowait() == job.job_id
        await hub.runner.run(job.job_id)
        assert_failed_by_it(await hub.job(job.job_id))
        await hub.assert_nothing_left()


async def test_queued_and_new_backups_fail_too(hub: Hub):
    queued = await hub.accept()
    await Enrolment(hub.workshop).revoke(SITE)
    assert_failed_by_it(await hub.job(queued.job_id))
    assert_failed_by_it(await hub.run())
    assert hub.agent.jobs == {}


async def test_a_hub_that_starts_again_knows_who_was_revoked(world: World):
    async with hub_of(world) as hub:
        await Enrolment(hub.workshop).revoke(SITE)
    async with hub_of(world, register=False) as hub:
        await hub.workshop.sites.know_revoked()
        assert_failed_by_it(await hub.run())
        assert await hub.workshop.sites.look(SITE) is None


async def test_revoking_twice_is_once_and_an_unknown_site_is_not_found(hub: Hub):
    enrolment = Enrolment(hub.workshop)
    first, _ = await enrolment.revoke(SITE)
    again, _ = await enrolment.revoke(SITE)
    assert first == again
    with pytest.raises(SendenseError) as unknown:
        await enrolment.revoke("nowhere")
    assert unknown.value.reason == Reason.REASON_SITE_NOT_FOUND


async def test_a_revoked_key_never_comes_back_and_a_new_one_brings_the_site_back(hub: Hub):
    site, _ = await Enrolment(hub.workshop).revoke(SITE)

    async def register(name: str, fingerprint: str) -> site_service_pb2.Site:
        return await hub.catalog.run(
            lambda connection: sites.register(connection, name, "ssh-ed25519 AAAA", fingerprint)
        )

    for name in (SITE, "another"):
        with pytest.raises(SendenseError) as refused:
            await register(name, site.fingerprint)
        assert refused.value.reason in {Reason.REASON_SITE_REVOKED, Reason.REASON_SITE_EXISTS}
    with pytest.raises(SendenseError) as revoked:
        await hub.catalog.run(lambda connection: sites.by_fingerprint(connection, site.fingerprint))
    assert revoked.value.reason == Reason.REASON_SITE_REVOKED
    assert not (await register(SITE, "SHA256:new")).HasField("revoke_time")
