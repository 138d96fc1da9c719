# SPDX-License-Identifier: Apache-2.0
"""Interrupted backups: the hub's half, with real layers, exports and ledgers, and an agent by script."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from tests.integration.hub.kit import Hub, World, hub_of, qemu_nbd_of
from tests.integration.hub.scripted_agent import (
    CAPACITY,
    MIB,
    Script,
    ScriptedJob,
    backup,
    incremental,
    plan_of,
    planned,
)
from tests.integration.hub.test_backups import digests, sha256
from tests.integration.repository.kit import noise

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.catalog import Catalog, job_plans
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs.recovery import recover

pytestmark = pytest.mark.integration

T = TypeVar("T")

PIECES = {0: noise(1, MIB), MIB: noise(2, MIB), 2 * MIB: noise(3, MIB), CAPACITY - 512: noise(4, 512)}
WHOLE = sha256(PIECES)
PATIENT = Patience(tries=3)


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    async with hub_of(world, patience=PATIENT) as made:
        yield made


def written(job: ScriptedJob, key: int = 2000) -> set[tuple[int, int, int]]:
    """(era, offset, length) of all that the hub says is there."""
    found = set()
    for each in job.heard:
        if each.WhichOneof("message") == "written" and each.written.disk_key == key:
            numbers = list(each.written.extents_bytes)
            found |= {(each.written.era, *pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)}
    return found


def covered(job: ScriptedJob, offset: int) -> bool:
    return any(first <= offset < first + length for _, first, length in written(job))


async def interrupts(job: ScriptedJob, reason: Reason.ValueType = Reason.REASON_TUNNEL_LOST) -> None:
    """As an agent that keeps its snapshot for the next attempt."""
    await job.say(interrupted=agent.BackupInterrupted(failure=Failure(reason=reason, message="cut")))
    await asyncio.Event().wait()


def honest(before: Callable[[ScriptedJob, int], Any] = lambda job, number: None) -> Script:
    """Copies what the hub does not have; `before` is asked before each piece, and after the last."""

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of(planned(keeps_layer=job.start.HasField("resume"))))
        await job.phase(agent.AGENT_PHASE_COPY)
        for number, (offset, data) in enumerate(PIECES.items()):
            if (ending := before(job, number)) is not None:
                await ending
            if not covered(job, offset):
                await job.copy(export, {offset: data}, done=False)
                await job.is_stored()
        await job.copy(export, {})
        await job.finish()

    return script


async def run_on(hub: Hub, job_id: str, attempts: int = 9) -> pb.Job:
    """Gives a job its turns until it has ended; the pauses are left out."""
    for _ in range(attempts):
        async with asyncio.timeout(40):
            await hub.runner.run(job_id)
        job = await hub.job(job_id)
        if job.state != pb.JOB_STATE_WAITING:
            return job
    return job


async def test_ff13_an_interrupted_backup_goes_on_and_copies_only_what_is_not_stored(hub: Hub):
    def before(job: ScriptedJob, number: int) -> Any:
        return interrupts(job) if job.start.attempt == number else None

    hub.agent.script = honest(before)
    job = await hub.run()
    assert job.state == pb.JOB_STATE_WAITING
    assert qemu_nbd_of(hub.world.paths.exports_dir) == [], "nothing writes while it waits"
    assert hub.agent.job.count("cancel") == 0, "its snapshot stays"
    ended = await run_on(hub, job.job_id)
    assert (ended.state, ended.attempt) == (pb.JOB_STATE_SUCCEEDED, 4), ended.failure
    assert [each.went_on for each in ended.interruptions] == ["same_snapshot"] * 3
    assert [each.recopied_bytes for each in ended.interruptions] == [0, 0, 0]
    (disk,) = ended.disks
    assert (disk.copied_bytes, disk.recopied_bytes) == (sum(map(len, PIECES.values())), 0)
    (point,) = await hub.points()
    assert await digests(hub, point.point_id) == {2000: WHOLE}
    last = [start.resume for start in hub.agent.starts][-1]
    assert [(era.snapshot_moref, era.change_id) for era in last.disks[0].eras] == [
        ("snapshot-1", "52 aa/2000")
    ]
    assert written(hub.agent.job) == {(0, 0, 3 * MIB)}
    assert await hub.catalog.run(lambda c: job_plans.get(c, job.job_id)) is None


async def test_what_was_written_and_not_stored_is_said_to_be_copied_again(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, {0: PIECES[0]}, done=False)
        progress = agent.DiskProgress(disk_key=2000, read_bytes=MIB, copied_bytes=MIB + 4096)
        await job.say(progress=agent.BackupProgress(disks=[progress]))
        await interrupts(job)

    hub.agent.script = script
    job = await hub.run()
    assert [each.recopied_bytes for each in job.interruptions] == [4096]
    assert job.disks[0].recopied_bytes == 4096
    hub.agent.script = honest()
    ended = await run_on(hub, job.job_id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    (disk,) = ended.disks
    assert disk.copied_bytes - disk.recopied_bytes == sum(map(len, PIECES.values()))


async def test_layers_written_from_several_snapshots_are_told_apart(hub: Hub):
    """What is asked of the tracking is asked from the change ID of the snapshot that each part came from."""
    snapshots = {1: "snapshot-1", 2: "snapshot-2", 3: "snapshot-2", 4: "snapshot-4"}

    async def script(job: ScriptedJob) -> None:
        moref, number = snapshots[job.start.attempt], job.start.attempt - 1
        disk = planned(keeps_layer=number > 0, change_id=f"52 aa/{moref}")
        (export,) = await job.snapshot_and_plan(plan_of(disk, snapshot_moref=moref))
        offset = list(PIECES)[number]
        await job.copy(export, {offset: PIECES[offset]}, done=number == 3)
        await job.is_stored()
        if number < 3:
            await interrupts(job)
        await job.finish()

    hub.agent.script = script
    ended = await run_on(hub, (await hub.accept()).job_id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    assert [each.went_on for each in ended.interruptions] == ["new_snapshot", "same_snapshot", "new_snapshot"]
    eras = [
        [era.snapshot_moref for era in start.resume.disks[0].eras]
        for start in hub.agent.starts
        if start.HasField("resume")
    ]
    assert eras == [["snapshot-1"], ["snapshot-1", "snapshot-2"], ["snapshot-1", "snapshot-2"]]
    assert written(hub.agent.job) == {(0, 0, MIB), (1, MIB, 2 * MIB)}
    (point,) = await hub.points()
    assert point.disks[0].change_id == "52 aa/snapshot-4", "of the newest snapshot"


async def test_a_disk_that_cannot_go_on_is_begun_anew_and_one_that_is_gone_leaves_no_file(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        if job.start.attempt == 1:
            exports = await job.snapshot_and_plan(plan_of(planned(2000), planned(2001)))
            for export in exports:
                await job.copy(export, {0: noise(9, MIB)}, done=False)
            await job.is_stored()
            await interrupts(job)
        (export,) = await job.snapshot_and_plan(plan_of(planned(2000), snapshot_moref="snapshot-2"))
        await job.copy(export, PIECES)
        await job.finish()

    hub.agent.script = script
    ended = await run_on(hub, (await hub.accept()).job_id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    assert [each.went_on for each in ended.interruptions] == ["from_the_start"]
    assert ended.disks[0].recopied_bytes == MIB
    (point,) = await hub.points()
    assert await digests(hub, point.point_id) == {2000: WHOLE}
    names = sorted(path.name for path in (hub.repository.root / point.directory).iterdir())
    assert names == ["disk-2000.ledger", "disk-2000.qcow2", "point.json"]


async def test_a_layer_that_its_dying_writer_damaged_is_copied_anew(hub: Hub):
    hub.agent.script = honest(lambda job, number: interrupts(job) if number == 2 else None)
    job = await hub.run()
    (layer,) = hub.repository.root.glob("*/*/*/disk-2000.qcow2")
    with layer.open("r+b") as file:
        file.seek(65536)  # its refcounts
        file.write(b"\xff" * 65536)
    hub.agent.script = honest()
    ended = await run_on(hub, job.job_id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    assert written(hub.agent.job) == set()
    assert ended.disks[0].recopied_bytes == 2 * MIB
    (point,) = await hub.points()
    assert await digests(hub, point.point_id) == {2000: WHOLE}


async def test_an_incremental_goes_on_over_its_parent(hub: Hub):
    hub.agent.script = backup({2000: {0: noise(7, 3 * MIB)}})
    await hub.run()

    async def script(job: ScriptedJob) -> None:
        (disk,) = plan_of(incremental()).disks
        disk.keeps_layer = job.start.HasField("resume")
        (export,) = await job.snapshot_and_plan(plan_of(disk))
        assert export.write_zeroes
        for offset in (0, MIB):
            if not covered(job, offset):
                await job.copy(export, {offset: PIECES[offset]}, done=False)
                await job.is_stored()
                if job.start.attempt == 1:
                    await interrupts(job)
        await job.copy(export, {})
        await job.finish()

    hub.agent.script = script
    ended = await run_on(hub, (await hub.accept()).job_id)
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    newest = (await hub.points())[0]
    assert await digests(hub, newest.point_id) == {
        2000: sha256({0: noise(7, 3 * MIB)}, dict(list(PIECES.items())[:2]))
    }


async def test_a_job_that_is_cancelled_while_it_waits_leaves_nothing(hub: Hub):
    hub.agent.script = honest(lambda job, number: interrupts(job) if number == 1 else None)
    job = await hub.run()
    answer = await hub.workshop.board.cancel(job.job_id)
    assert answer.state == pb.JOB_STATE_CANCELLING
    await hub.runner.run(job.job_id)
    ended = await hub.job(job.job_id)
    assert (ended.state, ended.failure.reason) == (pb.JOB_STATE_CANCELLED, Reason.REASON_CANCELLED)
    assert hub.agent.cleaned == [job.job_id], "its snapshot goes"
    await hub.assert_nothing_left()


@contextlib.contextmanager
def after_the_next_transaction(hub: Hub, then: Callable[[], Awaitable[Any]]) -> Iterator[None]:
    """Whoever waits for it goes on when `then` has been done."""
    run = hub.catalog.run

    async def once(transaction: Any) -> Any:
        hub.catalog.run = run  # type: ignore[method-assign]
        answer: Any = await run(transaction)
        await then()
        return answer

    hub.catalog.run = once  # type: ignore[method-assign]
    yield
    assert hub.catalog.run == run


async def test_a_waiting_job_that_is_cancelled_when_its_turn_comes_is_cancelled(hub: Hub):
    hub.agent.script = honest(lambda job, number: interrupts(job) if number == 1 else None)
    job = await hub.run()
    answers = []

    async def cancel() -> None:
        """It runs not yet, but was read by who will run it."""
        answers.append(await hub.workshop.board.cancel(job.job_id))

    with after_the_next_transaction(hub, cancel):
        await hub.runner.run(job.job_id)
    assert [each.state for each in answers] == [pb.JOB_STATE_CANCELLING]
    ended = await hub.job(job.job_id)
    assert (ended.state, ended.failure.reason) == (pb.JOB_STATE_CANCELLED, Reason.REASON_CANCELLED)
    assert ended.attempt == 1
    assert hub.agent.cleaned == [job.job_id], "its snapshot goes"
    await hub.assert_nothing_left()


async def test_a_queued_job_that_is_cancelled_when_its_turn_comes_does_not_run(hub: Hub):
    job = await hub.accept()

    async def cancel() -> None:
        assert (await hub.workshop.board.cancel(job.job_id)).state == pb.JOB_STATE_CANCELLED

    with after_the_next_transaction(hub, cancel):
        await hub.runner.run(job.job_id)
    assert (await hub.job(job.job_id)).state == pb.JOB_STATE_CANCELLED
    assert hub.agent.starts == []
    assert hub.workshop.board.running() == []


async def test_a_catalog_that_cannot_be_read_when_an_attempt_begins_ends_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    hub.agent.script = honest(
        lambda job, number: interrupts(job) if (job.start.attempt, number) == (1, 1) else None
    )
    job = await hub.run()
    assert job.state == pb.JOB_STATE_WAITING
    real = job_plans.get
    refused: list[bool] = []

    def locked(*arguments: Any) -> Any:
        if not refused:
            refused.append(True)
            raise sa.exc.OperationalError("SELECT", {}, Exception("database is locked"))
        return real(*arguments)

    monkeypatch.setattr(job_plans, "get", locked)
    monkeypatch.setattr("sendense_hub.jobs.runner._AGAIN_AFTER_S", 0.01)
    ended = await run_on(hub, job.job_id)
    assert refused
    assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
    assert ended.attempt == 2
    assert hub.agent.starts[-1].HasField("resume")


async def test_a_job_that_gets_no_further_is_given_up_and_leaves_nothing(hub: Hub):
    hub.agent.script = honest(
        lambda job, number: interrupts(job, Reason.REASON_SOURCE_READ_FAILED) if number == 1 else None
    )
    ended = await run_on(hub, (await hub.accept()).job_id)
    assert (ended.state, ended.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_SOURCE_READ_FAILED)
    assert ended.attempt == 1 + PATIENT.tries
    assert hub.agent.job.count("cancel") == 1, "the agent removes its snapshot"
    await hub.assert_nothing_left()


async def test_an_agent_that_lost_the_job_is_given_it_again(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        if job.start.attempt == 1:
            (export,) = await job.snapshot_and_plan(plan_of())
            await job.copy(export, {0: PIECES[0]}, done=False)
            await job.is_stored()
            await job.fail(Reason.REASON_COPY_PROCESS_DIED, snapshot_left=True)
        else:
            await honest()(job)

    hub.agent.script = script
    ended = await run_on(hub, (await hub.accept()).job_id)
    assert (ended.state, ended.attempt) == (pb.JOB_STATE_SUCCEEDED, 2), ended.failure
    assert written(hub.agent.job) == {(0, 0, MIB)}


class Killed(BaseException):
    """The hub is not there any more."""


async def test_ff13_a_hub_that_is_killed_after_any_of_its_commits_makes_the_point_once(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """Twice in a row, at the same place: the second life is killed there too."""
    world.agent.script = honest()
    run, lives, limit = Catalog.run, 0, 0

    async def deadly(self: Catalog, transaction: Callable[[sa.Connection], T]) -> T:
        nonlocal limit
        result: T = await run(self, transaction)
        limit -= 1
        if limit == 0:
            raise Killed
        return result

    number, survived = 0, False
    while not survived:
        number += 1
        job_id = ""
        for life in range(3):
            async with hub_of(world, register=number == 1 and life == 0, patience=PATIENT) as hub:
                if life == 0:
                    job_id = (await hub.accept()).job_id
                else:
                    await recover(hub.workshop)
                if life < 2:
                    limit = number
                    with monkeypatch.context() as patched:
                        patched.setattr(Catalog, "run", deadly)
                        try:
                            async with asyncio.timeout(40):
                                await hub.runner.run(job_id)
                            survived = survived or (life == 0 and limit > 0)
                        except Killed:
                            lives += 1
                    with warnings.catch_warnings():  # a process that is killed closes its files
                        warnings.simplefilter("ignore", ResourceWarning)
                        gc.collect()
                else:
                    ended = await run_on(hub, job_id)
                    assert ended.state == pb.JOB_STATE_SUCCEEDED, (number, ended)
                    points = await hub.points()
                    assert [each.job_id for each in points].count(job_id) == 1, number
                    assert await digests(hub, ended.point_id) == {2000: WHOLE}, number
                    assert len(await hub.rows()) == len(points) == len(list(hub.repository.directories()))
                    assert qemu_nbd_of(world.paths.exports_dir) == []
    assert lives > 20
