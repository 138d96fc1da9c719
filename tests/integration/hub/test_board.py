# SPDX-License-Identifier: Apache-2.0
"""What operators see of jobs is never ahead of the catalog, and what they ask for is done or refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hub.kit import new_job, until
from tests.integration.hub.test_catalog import keep

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, jobs, open_catalog
from sendense_hub.jobs import job_changes
from sendense_hub.jobs.board import Board, end

pytestmark = pytest.mark.integration

COPY = agent.BackupProgress(disks=[agent.DiskProgress(disk_key=2000, read_bytes=7)])
PLAN = agent.BackupPlan(vm_name="web", disks=[agent.PlannedDisk(key=2000, mode=agent.DISK_MODE_FULL)])


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with open_catalog(f"sqlite:///{tmp_path / 'c.sqlite'}") as opened:
        yield opened


async def stored(catalog: Catalog, job: pb.Job) -> pb.Job:
    return await catalog.run(lambda connection: jobs.get(connection, job.job_id))


async def test_a_change_is_written_before_it_is_shown(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    seen: list[tuple[pb.JobState.ValueType, pb.JobState.ValueType]] = []
    with board.run(job) as live:
        run = catalog.run

        async def watched(transaction: Any) -> Any:
            answer: Any = await run(transaction)
            seen.append((live.job.state, (await run(lambda c: jobs.get(c, job.job_id))).state))
            return answer

        catalog.run = watched  # type: ignore[method-assign]
        await live.change(job_changes.start)
        assert live.job.state == pb.JOB_STATE_RUNNING
    assert seen == [(pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)]


async def test_what_changes_nothing_is_not_written(catalog: Catalog, monkeypatch: pytest.MonkeyPatch):
    board, job = Board(catalog), await keep(catalog, new_job())
    written: list[pb.Job] = []
    write = jobs.write

    def counted(connection: Any, version: pb.Job, **more: Any) -> bool:
        written.append(version)
        return write(connection, version, **more)

    monkeypatch.setattr(jobs, "write", counted)
    with board.run(job) as live:
        for _ in range(3):
            await live.change(job_changes.enter(pb.JOB_PHASE_SNAPSHOT))
        await live.change(job_changes.enter(pb.JOB_PHASE_COPY))
    assert [each.phase for each in written] == [pb.JOB_PHASE_SNAPSHOT, pb.JOB_PHASE_COPY]


async def test_a_change_that_cannot_be_written_is_not_shown(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    with board.run(job) as live:
        ended = pb.Job()
        ended.CopyFrom(job)
        end(ended, pb.JOB_STATE_CANCELLED)
        assert await catalog.run(lambda connection: jobs.write(connection, ended))
        for make in (live.change, live.count):
            with pytest.raises(SendenseError) as refused:
                await make(job_changes.plan(PLAN))
            assert refused.value.reason == Reason.REASON_JOB_ENDED
        assert live.job == job


async def test_counters_are_written_now_and_then_and_shown_only_when_they_are(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    with board.run(job) as live:
        await live.change(job_changes.start)
        await live.change(job_changes.plan(PLAN))
        await live.count(job_changes.progress(COPY, 1.0))
        assert (await stored(catalog, job)).disks[0].state == pb.DISK_STATE_COPYING, (
            "a disk that begins is written"
        )
        COPY_MORE = agent.BackupProgress(disks=[agent.DiskProgress(disk_key=2000, read_bytes=9)])  # noqa: N806
        await live.count(job_changes.progress(COPY_MORE, 2.0))
        assert live.newest.disks[0].read_bytes == 9
        assert (await board.get(job.job_id)).disks[0].read_bytes == 7
        assert (await stored(catalog, job)).disks[0].read_bytes == 7
        await live.change(job_changes.warn("c", "m"))
        assert (await stored(catalog, job)).disks[0].read_bytes == 9
        assert (await board.get(job.job_id)).disks[0].read_bytes == 9


async def test_changes_at_one_moment_are_all_kept(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    with board.run(job) as live:
        await asyncio.gather(*(live.change(job_changes.warn(str(number), "m")) for number in range(20)))
    assert {warning.code for warning in (await stored(catalog, job)).warnings} == {str(n) for n in range(20)}


async def test_a_watch_shows_each_version_once_and_ends_with_the_job(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    seen: list[pb.Job] = []

    async def watch() -> None:
        async for version in board.watch(job.job_id[:8]):
            seen.append(version)  # noqa: PERF401 - the test looks at it meanwhile

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(20):
        await until(lambda: seen, "the first version")
        with board.run(job) as live:
            await live.change(job_changes.start)
            await until(lambda: len(seen) == 2, "the second version")
            await live.change(lambda version: end(version, pb.JOB_STATE_SUCCEEDED))
        await watching
    assert [version.state for version in seen] == [
        pb.JOB_STATE_QUEUED,
        pb.JOB_STATE_RUNNING,
        pb.JOB_STATE_SUCCEEDED,
    ]


async def test_a_watch_of_an_ended_job_ends_at_once(catalog: Catalog):
    job = await keep(catalog, new_job(state=pb.JOB_STATE_FAILED))
    async with asyncio.timeout(20):
        assert [version.state async for version in Board(catalog).watch(job.job_id)] == [pb.JOB_STATE_FAILED]


async def test_a_watch_of_a_job_that_does_not_exist_is_refused(catalog: Catalog):
    with pytest.raises(SendenseError) as missing:
        async for _ in Board(catalog).watch("nothing"):
            pass
    assert missing.value.reason == Reason.REASON_JOB_NOT_FOUND


async def test_a_queued_job_is_cancelled_at_once_and_does_not_run(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    cancelled = await board.cancel(job.job_id)
    assert cancelled.state == pb.JOB_STATE_CANCELLED == (await stored(catalog, job)).state
    assert cancelled.failure.reason == Reason.REASON_CANCELLED
    with board.run(job) as live:
        with pytest.raises(SendenseError) as ended:
            await live.change(job_changes.start)
    assert ended.value.reason == Reason.REASON_JOB_ENDED


async def test_a_running_job_is_asked_to_stop_once_and_for_the_first_cause(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    with board.run(job) as live:
        await live.change(job_changes.start)
        assert not live.stop_requested.is_set()
        for _ in range(2):
            assert (await board.cancel(job.job_id)).state == pb.JOB_STATE_CANCELLING
        assert (await stored(catalog, job)).state == pb.JOB_STATE_CANCELLING
        board.stop_all(SendenseError(Reason.REASON_SERVICE_STOPPING, "later"))
        assert live.stop_requested.is_set()
        assert live.stop_cause is not None
        assert live.stop_cause.reason == Reason.REASON_CANCELLED


@pytest.mark.parametrize("phase", [pb.JOB_PHASE_COMMIT, pb.JOB_PHASE_REMOVE_SNAPSHOT])
async def test_a_job_whose_point_is_being_completed_is_not_asked_to_stop(
    catalog: Catalog, phase: pb.JobPhase.ValueType
):
    board, job = Board(catalog), await keep(catalog, new_job())
    with board.run(job) as live:
        await live.change(job_changes.start)
        await live.change(job_changes.enter(phase))
        with pytest.raises(SendenseError, match="being completed") as refused:
            await board.cancel(job.job_id)
        assert refused.value.reason == Reason.REASON_JOB_ENDED
        assert not live.stop_requested.is_set()
        assert live.job.state == pb.JOB_STATE_RUNNING


async def test_an_ended_job_is_not_cancelled(catalog: Catalog):
    job = await keep(catalog, new_job(state=pb.JOB_STATE_SUCCEEDED))
    with pytest.raises(SendenseError, match="has ended") as refused:
        await Board(catalog).cancel(job.job_id)
    assert refused.value.reason == Reason.REASON_JOB_ENDED


async def test_whoever_gets_a_turn_in_a_stop_is_asked_to_stop_too(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    board.stop_all(SendenseError(Reason.REASON_SERVICE_STOPPING, "now"))
    with board.run(job) as live:
        assert live.stop_requested.is_set()


async def test_a_caller_of_cancel_that_hangs_up_has_been_heard(catalog: Catalog):
    board, job = Board(catalog), await keep(catalog, new_job())
    with board.run(job) as live:
        await live.change(job_changes.start)
        asking = asyncio.create_task(board.cancel(job.job_id))
        async with asyncio.timeout(20):
            while (await stored(catalog, job)).state != pb.JOB_STATE_CANCELLING:
                asking.cancel()
                if asking.done() and asking.cancelled():
                    asking = asyncio.create_task(board.cancel(job.job_id))
                    await asyncio.sleep(0.001)
            await live.stop_requested.wait()
