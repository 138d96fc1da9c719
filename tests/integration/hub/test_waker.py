# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait get their turn when what they wait for is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.integration.hub.kit import Hub, World, hub_of, new_job

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.catalog import jobs
from sendense_hub.catalog.jobs import Origin
from sendense_hub.domain import times
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs import waker as waker_module
from sendense_hub.jobs.engine import Engine
from sendense_hub.jobs.waker import Waker
from sendense_hub.repository import Repository, Space

pytestmark = pytest.mark.integration

SECOND_US = 1_000_000


class Queue(Engine):
    """Says whose turn came."""

    def __init__(self) -> None:
        self.turns: asyncio.Queue[str] = asyncio.Queue()

    async def enqueue(self, job: pb.Job) -> None:
        self.turns.put_nowait(job.job_id)

    async def enqueue_late(self) -> None:
        pass

    async def enqueue_forgotten(self) -> None:
        pass


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    async with hub_of(world) as made:
        yield made


@contextlib.asynccontextmanager
async def waking(hub: Hub, monkeypatch: pytest.MonkeyPatch, **patience: float) -> AsyncIterator[Queue]:
    monkeypatch.setattr(waker_module, "_EVERY_S", 0.02)
    queue = Queue()
    task = asyncio.create_task(Waker(hub.workshop, queue, Patience(**patience)).run())  # type: ignore[arg-type]
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def waiting(
    hub: Hub,
    reason: Reason.ValueType,
    *,
    state: pb.JobState.ValueType = pb.JOB_STATE_WAITING,
    in_s: float = 0,
) -> pb.Job:
    job = new_job(state=state)
    one = job.interruptions.add(attempt=1, failure=Failure(reason=reason), fruitless_attempts=1)
    one.time.FromMicroseconds(times.now_us() - 100 * SECOND_US)
    one.next_try_time.FromMicroseconds(times.now_us() + int(in_s * SECOND_US))
    await hub.catalog.run(lambda connection: jobs.insert(connection, job, Origin(job.job_id, "")))
    return job


async def quiet(queue: Queue) -> None:
    """Ten rounds and more pass without a turn."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await queue.turns.get()


async def turn(queue: Queue) -> str:
    async with asyncio.timeout(20):
        return await queue.turns.get()


async def test_a_job_whose_time_has_come_gets_its_turn(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    job = await waiting(hub, Reason.REASON_VCENTER_UNREACHABLE)
    async with waking(hub, monkeypatch) as queue:
        assert await turn(queue) == job.job_id


async def test_a_job_whose_time_has_not_come_waits(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    await waiting(hub, Reason.REASON_VCENTER_UNREACHABLE, in_s=3600)
    async with waking(hub, monkeypatch) as queue:
        await quiet(queue)


async def test_a_job_waits_for_its_site_and_goes_on_when_it_is_there(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    away = hub.world.agent_socket.with_name("away")
    hub.world.agent_socket.rename(away)
    job = await waiting(hub, Reason.REASON_TUNNEL_LOST)
    async with waking(hub, monkeypatch) as queue:
        await quiet(queue)
        away.rename(hub.world.agent_socket)
        assert await turn(queue) == job.job_id


async def test_a_job_waits_for_room_and_goes_on_when_there_is_some(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    free = [0]
    monkeypatch.setattr(Repository, "space", lambda _: Space(total_bytes=2**40, free_bytes=free[0]))
    job = await waiting(hub, Reason.REASON_REPOSITORY_FULL)
    async with waking(hub, monkeypatch) as queue:
        await quiet(queue)
        free[0] = 2**30
        assert await turn(queue) == job.job_id


async def test_a_job_that_waited_too_long_gets_a_last_turn_whatever_is_missing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.world.agent_socket.rename(hub.world.agent_socket.with_name("away"))
    job = await waiting(hub, Reason.REASON_SITE_OFFLINE)
    async with waking(hub, monkeypatch, absent_s=99.0) as queue:
        assert await turn(queue) == job.job_id


async def test_a_job_that_was_cancelled_while_it_waited_gets_its_turn_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    job = await waiting(hub, Reason.REASON_SITE_OFFLINE, state=pb.JOB_STATE_CANCELLING, in_s=3600)
    async with waking(hub, monkeypatch) as queue:
        assert await turn(queue) == job.job_id


async def test_queued_jobs_that_the_queue_has_not_are_looked_for_whatever_fails_besides(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    looked = asyncio.Event()

    class Broken(Queue):
        async def enqueue_late(self) -> None:
            raise RuntimeError("a defect")

        async def enqueue_forgotten(self) -> None:
            looked.set()

    waker = Waker(hub.workshop, Broken(), Patience())
    task = asyncio.create_task(waker.run())
    async with asyncio.timeout(20):
        await looked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
