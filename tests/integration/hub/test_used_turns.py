# SPDX-License-Identifier: Apache-2.0
"""A turn of a job that has passed and did nothing for it is followed by another; never by two at once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.integration.hub.kit import Hub, World, api_of, files_of, hub_of, new_job, until
from tests.integration.hub.scripted_agent import backup
from tests.integration.hub.test_backups import FIRST
from tests.integration.hub.test_restart import interrupted, listed, workflows

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.catalog import jobs
from sendense_hub.catalog.jobs import Origin
from sendense_hub.domain import times
from sendense_hub.jobs import engine
from sendense_hub.jobs.runner import Runner

pytestmark = pytest.mark.integration


def use_up(world: World, workflow_id: str, status: str) -> None:
    """As if the queue had a workflow of this ID, which has ended."""
    with sqlite3.connect(world.paths.state / "dbos.sqlite", timeout=20) as connection:
        names = [row[1] for row in connection.execute("pragma table_info(workflow_status)")]
        values = {"workflow_uuid": "?", "status": "?"}
        chosen = ", ".join(values.get(name, name) for name in names)
        arguments = [workflow_id, status] if names.index("workflow_uuid") < names.index("status") else []
        assert arguments
        connection.execute(
            f"insert into workflow_status ({', '.join(names)}) select {chosen} from workflow_status limit 1",
            arguments,
        )
    connection.close()


async def put(hub: Hub, state: pb.JobState.ValueType, attempt: int) -> pb.Job:
    """A job in the catalog, which the queue knows nothing of."""
    job = new_job(state=state, attempt=attempt)
    if state == pb.JOB_STATE_WAITING:
        failure = Failure(reason=Reason.REASON_HUB_RESTARTED)
        one = job.interruptions.add(attempt=attempt, failure=failure)
        for time in (one.time, one.next_try_time):
            time.FromMicroseconds(times.now_us())
    await hub.catalog.run(lambda connection: jobs.insert(connection, job, Origin(job.job_id, "")))
    return job


@pytest.mark.parametrize(
    ("state", "attempt", "status"),
    [
        (pb.JOB_STATE_QUEUED, 0, "SUCCESS"),
        (pb.JOB_STATE_QUEUED, 0, "CANCELLED"),
        (pb.JOB_STATE_WAITING, 1, "ERROR"),
        (pb.JOB_STATE_WAITING, 1, "MAX_RECOVERY_ATTEMPTS_EXCEEDED"),
    ],
)
async def test_a_job_whose_turn_was_used_up_in_vain_runs_and_makes_one_point(
    world: World, state: pb.JobState.ValueType, attempt: int, status: str
) -> None:
    world.agent.script = backup(FIRST)
    async with api_of(world) as api:
        await api.register()
        await api.ended((await api.start_backup()).job_id)
    async with hub_of(world, register=False) as hub:
        job = await put(hub, state, attempt)
    turn = f"{job.job_id}.{attempt + 1}"
    use_up(world, turn, status)
    async with api_of(world) as api:
        ended = await api.ended(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
        assert ended.attempt == attempt + 1
        assert [each.job_id for each in await listed(api)].count(job.job_id) == 1
        await until(lambda: workflows(world)[f"{turn}.2"] == "SUCCESS", "its turn is over")
        assert {each for each in workflows(world) if each.startswith(job.job_id)} == {turn, f"{turn}.2"}


async def test_a_job_that_is_being_cancelled_ends_though_that_turn_was_used_up(world: World) -> None:
    world.agent.script = backup(FIRST)
    async with api_of(world) as api:
        await api.register()
        await api.ended((await api.start_backup()).job_id)
        async with hub_of(world, register=False) as hub:
            job = new_job(state=pb.JOB_STATE_CANCELLING, attempt=1)
            use_up(world, f"{job.job_id}.end", "SUCCESS")
            await hub.catalog.run(lambda connection: jobs.insert(connection, job, Origin(job.job_id, "")))
        assert (await api.ended(job.job_id)).state == pb.JOB_STATE_CANCELLED


async def test_a_queued_job_that_the_queue_has_lost_is_found_while_the_hub_is_up(world: World) -> None:
    world.agent.script = backup(FIRST)
    async with api_of(world) as api:
        await api.register()
        async with hub_of(world, register=False) as hub:
            job = await put(hub, pb.JOB_STATE_QUEUED, 0)
        ended = await api.ended(job.job_id)
        assert (ended.state, ended.attempt) == (pb.JOB_STATE_SUCCEEDED, 1), ended.failure


class IdleRunner(Runner):
    """Does nothing for a job; holds its turns up when it is told to."""

    def __init__(self) -> None:
        self.turns = 0
        self.at_once = 0
        self.most_at_once = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def run(self, job_id: str) -> None:
        self.turns += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self.go_on.wait()
        self.at_once -= 1


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    async with hub_of(world) as made:
        yield made


NO_PAUSES = (0.0,) * 5


async def six_turns(hub: Hub, job: pb.Job) -> pb.Job:
    """What has become of it."""
    runner = IdleRunner()
    queue = hub.world.paths.state / "dbos.sqlite"
    start = engine.start(hub.workshop, runner, queue, concurrency=4, pauses_s=NO_PAUSES)
    async with asyncio.timeout(60), start as made:
        while (now := await hub.job(job.job_id)) == job:
            await made.enqueue(now)
            await asyncio.sleep(0.02)
    assert runner.turns == 6
    assert runner.most_at_once == 1
    assert hub.workshop.board.running() == []
    return now


async def test_a_job_that_no_turn_begins_is_given_up(hub: Hub) -> None:
    now = await six_turns(hub, await put(hub, pb.JOB_STATE_QUEUED, 0))
    assert now.state == pb.JOB_STATE_FAILED
    assert now.failure.reason == Reason.REASON_INTERNAL
    assert "had its turn several times and was not begun" in now.failure.message


@pytest.mark.parametrize("fruitless", [0, 4])
async def test_what_a_waiting_job_has_copied_is_kept_as_long_as_other_failures_leave_it(
    world: World, fruitless: int
) -> None:
    half = await interrupted(world, committed=False)
    async with hub_of(world, register=False) as hub:
        job = await hub.job(half.job_id)
        job.state = pb.JOB_STATE_WAITING
        failure = Failure(reason=Reason.REASON_SNAPSHOT_FAILED)
        job.interruptions.add(attempt=job.attempt, failure=failure, fruitless_attempts=fruitless)
        for time in (job.interruptions[0].time, job.interruptions[0].next_try_time):
            time.FromMicroseconds(times.now_us())
        await hub.catalog.run(lambda connection: jobs.write(connection, job))
        now = await six_turns(hub, await hub.job(job.job_id))
        why = now.interruptions[-1]
        assert "had its turn several times and was not begun" in why.failure.message
        assert why.fruitless_attempts == fruitless + 1
        if fruitless:
            assert now.state == pb.JOB_STATE_FAILED
            await hub.assert_nothing_left()
        else:
            assert (now.state, now.attempt) == (pb.JOB_STATE_WAITING, job.attempt)
            assert why.next_try_time.ToMicroseconds() > why.time.ToMicroseconds()
            assert len(files_of(hub.repository)) == 1
            assert [row.job_id for row in await hub.rows()] == [job.job_id]


async def test_a_job_that_no_turn_begins_is_not_given_up_within_seconds(hub: Hub) -> None:
    runner, job = IdleRunner(), await put(hub, pb.JOB_STATE_QUEUED, 0)
    queue = hub.world.paths.state / "dbos.sqlite"
    async with engine.start(hub.workshop, runner, queue, concurrency=4) as made:
        async with asyncio.timeout(60):
            while runner.turns < 2:
                await made.enqueue(job)
        until_s = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < until_s:
            await made.enqueue(job)
    assert runner.turns == 2
    assert (await hub.job(job.job_id)).state == pb.JOB_STATE_QUEUED
    assert sum(engine.PAUSES_S) > 180


class WorkingRunner(Runner):
    """Each turn is an attempt that is interrupted."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def run(self, job_id: str) -> None:
        job = await self._hub.job(job_id)
        job.attempt += 1
        await self._hub.catalog.run(lambda connection: jobs.write(connection, job))


async def test_a_job_that_works_in_each_of_its_turns_is_not_given_up_though_each_was_used_up(
    hub: Hub,
) -> None:
    """The catalog was put back from a copy, and the queue knows the attempts that it does not."""
    job = await put(hub, pb.JOB_STATE_WAITING, 1)
    queue = hub.world.paths.state / "dbos.sqlite"
    async with engine.start(hub.workshop, WorkingRunner(hub), queue, concurrency=4) as made:
        await made.enqueue(job)
        await until(lambda: set(workflows(hub.world).values()) == {"SUCCESS"}, "its turn is over")
        for attempt in range(3, 10):
            use_up(hub.world, f"{job.job_id}.{attempt}", "SUCCESS")
        async with asyncio.timeout(60):
            while (now := await hub.job(job.job_id)).attempt < 9 and now.state == pb.JOB_STATE_WAITING:
                await made.enqueue(now)
                await asyncio.sleep(0.02)
    assert (now.state, now.attempt) == (pb.JOB_STATE_WAITING, 9), now.failure


async def test_a_turn_that_has_not_ended_is_followed_by_no_other(hub: Hub) -> None:
    runner = IdleRunner()
    runner.go_on.clear()
    job = await put(hub, pb.JOB_STATE_WAITING, 1)
    queue = hub.world.paths.state / "dbos.sqlite"
    async with engine.start(hub.workshop, runner, queue, concurrency=4, pauses_s=NO_PAUSES) as made:
        for turn in (1, 2):
            async with asyncio.timeout(60):
                while runner.turns < turn:
                    await made.enqueue(job)
                    await asyncio.sleep(0.02)
            for _ in range(20):
                await made.enqueue(job)
                await made.enqueue_forgotten()
            assert runner.turns == turn
            runner.go_on.set()
            await until(lambda: not runner.at_once, "the turn is over")
            runner.go_on.clear()
        runner.go_on.set()


async def test_no_start_waits_for_queued_jobs_and_those_in_the_queue_are_not_queued_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands, and each takes milliseconds."""
    queued: list[str] = []
    enqueue = engine._enqueue

    async def counted(workflow_id: str, job: pb.Job) -> Any:
        queued.append(job.job_id)
        return await enqueue(workflow_id, job)

    monkeypatch.setattr(engine, "_enqueue", counted)
    wanted = []
    for machine in ("a", "b", "c"):
        job = new_job(vm_instance_uuid=machine)
        origin = Origin(job.job_id, "")
        await hub.catalog.run(lambda connection, job=job, origin=origin: jobs.insert(connection, job, origin))  # type: ignore[misc]
        wanted.append(job.job_id)
    runner = IdleRunner()
    runner.go_on.clear()
    queue = hub.world.paths.state / "dbos.sqlite"
    for before in ([], wanted):
        async with engine.start(hub.workshop, runner, queue, concurrency=1) as made:
            assert queued == before
            await made.enqueue_forgotten()
            assert queued == wanted
    runner.go_on.set()


async def test_a_job_that_got_further_meanwhile_gets_no_turn_of_its_old_attempt(hub: Hub) -> None:
    runner = IdleRunner()
    old = await put(hub, pb.JOB_STATE_WAITING, 1)
    queue = hub.world.paths.state / "dbos.sqlite"
    async with engine.start(hub.workshop, runner, queue, concurrency=4) as made:
        await made.enqueue(old)
        await until(lambda: set(workflows(hub.world).values()) == {"SUCCESS"}, "its turn is over")
        further = await hub.job(old.job_id)
        further.attempt = 2
        await hub.catalog.run(lambda connection: jobs.write(connection, further))
        await made.enqueue(old)
    assert set(workflows(hub.world)) == {f"{old.job_id}.2"}
