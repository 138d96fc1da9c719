# SPDX-License-Identifier: Apache-2.0
"""How fast a job may read: told to its agent at once, to later attempts too, and kept by the catalog."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from tests.integration.hub.kit import Hub, World, hub_of
from tests.integration.hub.scripted_agent import MIB, ScriptedJob, backup, plan_of
from tests.integration.hub.test_backups import FIRST

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import job_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.catalog import jobs
from sendense_hub.domain.resuming import Patience
from sendense_hub.rpc.job_service import JobService

pytestmark = pytest.mark.integration

RATE = 20 * MIB


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    async with hub_of(world, patience=Patience()) as made:
        yield made


async def limit(hub: Hub, job_id: str, bytes_per_second: int) -> pb.Job:
    request = job_service_pb2.LimitJobRequest(job_id=job_id, bytes_per_second=bytes_per_second)
    service = JobService(hub.catalog, hub.workshop.board)
    return (await service.LimitJob(request, None)).job  # type: ignore[arg-type]


async def hears(job: ScriptedJob, *limits: int) -> None:
    """Waits until the agent has been told these, in this order."""

    def heard() -> list[int]:
        told = (each for each in job.heard if each.WhichOneof("message") == "limit")
        return [each.limit.bytes_per_second for each in told]

    async with asyncio.timeout(40), job.news:
        await job.news.wait_for(lambda: heard() == list(limits))


async def test_a_running_job_is_limited_at_once_and_without_a_limit_again(hub: Hub) -> None:
    ready, limited = asyncio.Event(), asyncio.Event()

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        ready.set()
        await hears(job, RATE, 0)
        limited.set()
        await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    job, task = await hub.begin()
    await ready.wait()
    assert (await limit(hub, job.job_id, RATE)).bytes_per_second == RATE
    assert (await hub.job(job.job_id)).bytes_per_second == RATE
    await hears(hub.agent.job, RATE)
    assert (await limit(hub, job.job_id, 0)).bytes_per_second == 0
    async with asyncio.timeout(40):
        await limited.wait()
        await task
    assert (await hub.job(job.job_id)).state == pb.JOB_STATE_SUCCEEDED


async def test_a_limit_is_kept_for_later_attempts_and_told_again_on_a_new_stream(hub: Hub) -> None:
    ready = asyncio.Event()

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        if job.start.attempt == 1:
            await hears(job, RATE)
            await job.drop(grpc.StatusCode.UNAVAILABLE)
            await hears(job, RATE, RATE)
            failure = Failure(reason=Reason.REASON_TUNNEL_LOST, message="cut", retryable=True)
            ready.set()
            await job.say(interrupted=agent.BackupInterrupted(failure=failure))
            return
        await hears(job, 2 * RATE)
        await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    job = await hub.accept()
    assert (await limit(hub, job.job_id, RATE)).state == pb.JOB_STATE_QUEUED
    async with asyncio.timeout(40):
        await hub.runner.run(job.job_id)
    assert ready.is_set()
    assert (await hub.job(job.job_id)).state == pb.JOB_STATE_WAITING
    assert (await limit(hub, job.job_id, 2 * RATE)).state == pb.JOB_STATE_WAITING
    async with asyncio.timeout(40):
        await hub.runner.run(job.job_id)
    ended = await hub.job(job.job_id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    assert ended.bytes_per_second == 2 * RATE


async def test_a_limit_that_is_set_while_the_turn_of_a_job_comes_is_not_lost(hub: Hub) -> None:
    hub.agent.script = backup(FIRST)
    read = await hub.accept()
    await limit(hub, read.job_id, RATE)
    with hub.workshop.board.run(read) as live:  # as it was read before
        assert await live.begin(lambda job: None)
        assert live.job.bytes_per_second == RATE
        await live.change(lambda job: None)
        await hub.catalog.run(lambda connection: jobs.write(connection, read))
    assert (await hub.job(read.job_id)).bytes_per_second == RATE


async def test_an_ended_job_or_none_at_all_cannot_be_limited(hub: Hub) -> None:
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    with pytest.raises(SendenseError) as raised:
        await limit(hub, job.job_id, RATE)
    assert raised.value.reason == Reason.REASON_JOB_ENDED
    with pytest.raises(SendenseError) as raised:
        await limit(hub, "00000000-none", RATE)
    assert raised.value.reason == Reason.REASON_JOB_NOT_FOUND


@pytest.mark.parametrize("rate", [-1, 1, 65_535, 2**40 + 1, 2**63 - 1])
async def test_a_rate_that_no_backup_could_live_with_is_refused(hub: Hub, rate: int) -> None:
    job = await hub.accept()
    with pytest.raises(SendenseError) as raised:
        await limit(hub, job.job_id, rate)
    assert raised.value.metadata["field"] == "bytes_per_second"
    assert (await hub.job(job.job_id)).bytes_per_second == 0
