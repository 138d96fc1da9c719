# SPDX-License-Identifier: Apache-2.0
"""The commit: its order, what may fail after it, and who may still cancel."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.integration.hub.kit import Hub, files_of, qemu_nbd_of, until
from tests.integration.hub.scripted_agent import ScriptedJob, backup, plan_of
from tests.integration.hub.test_backups import FIRST, digests, sha256

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points
from sendense_hub.clients.backup_stream import BackupStream
from sendense_hub.jobs import backup as backup_job
from sendense_hub.jobs import runner as runner_module
from sendense_hub.jobs.board import LiveJob
from sendense_hub.repository import durable

pytestmark = pytest.mark.integration


def waits_in_copy(ready: asyncio.Event) -> Any:
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.phase(agent.AGENT_PHASE_COPY)
        await job.copy(export, FIRST[2000], done=False)
        ready.set()
        await asyncio.Event().wait()

    return script


async def test_ff15_ff16_the_commit_goes_layer_ledger_mark_catalog(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    order: list[str] = []
    fsync, rename, complete = os.fsync, Path.rename, points.complete

    def told_fsync(descriptor: int) -> None:
        order.append("fsync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        assert qemu_nbd_of(hub.world.paths.exports_dir) == [], "the export was stopped before"
        assert vars(hub.workshop.exports)["_exports"] == {}, "nobody may open it any more"
        fsync(descriptor)

    def told_rename(self: Path, target: Any) -> Any:
        order.append(f"rename {Path(target).name}")
        return rename(self, target)

    def told_complete(connection: sa.Connection, point: point_service_pb2.RestorePoint) -> None:
        order.append("catalog")
        complete(connection, point)

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000])
        await job.is_stored()
        monkeypatch.setattr(os, "fsync", told_fsync)
        monkeypatch.setattr(Path, "rename", told_rename)
        monkeypatch.setattr(points, "complete", told_complete)
        await job.finish()

    hub.agent.script = script
    job = await hub.run()
    monkeypatch.undo()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    names = [step for step in order if "sqlite" not in step]
    first = names.index("fsync disk-2000.qcow2")
    assert names[first : first + 2] == ["fsync disk-2000.qcow2", "fsync disk-2000.ledger"]
    directory = f"fsync {job.point_id}"
    mark = names.index("rename point.json")
    assert names[first + 2] == directory, "the names of layer and ledger are durable before the mark"
    assert names[mark - 1] == "fsync .point.json.new"
    assert names[mark + 1] == directory, "the mark itself is durable"
    assert names[mark + 2] == "catalog"


@pytest.mark.parametrize("what", ["change", "say"])
async def test_what_fails_after_the_commit_does_not_fail_the_job(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, what: str
):
    change, say = LiveJob.change, BackupStream.say

    async def broken_change(self: LiveJob, wanted: Any) -> None:
        if "has_point" in wanted.__qualname__:
            raise SendenseError(Reason.REASON_INTERNAL, "forced")
        await change(self, wanted)

    async def broken_say(self: BackupStream, request: agent.RunBackupRequest) -> None:
        if request.WhichOneof("message") == "committed":
            raise RuntimeError("forced")
        await say(self, request)

    if what == "change":
        monkeypatch.setattr(LiveJob, "change", broken_change)
    else:
        monkeypatch.setattr(BackupStream, "say", broken_say)
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert [warning.code for warning in job.warnings] == ["ended_early"]
    (point,) = await hub.points()
    assert point.point_id == job.point_id
    assert await digests(hub, point.point_id) == {2000: sha256(FIRST[2000])}
    assert hub.agent.job.count("cancel") == 1, "the agent is told to remove its snapshot"
    assert qemu_nbd_of(hub.world.paths.exports_dir) == []


async def test_a_snapshot_that_stays_after_the_commit_is_a_warning(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000])
        await job.say(copied=agent.DisksCopied())
        await job.hear("committed")
        await job.fail(Reason.REASON_VSPHERE_FAULT, snapshot_left=True, message="TaskInProgress")

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED
    assert not job.HasField("failure")
    assert [(each.code, each.message) for each in job.warnings] == [("ended_early", "TaskInProgress")]
    assert hub.agent.cleaned == [job.job_id]


async def test_a_locked_catalog_at_the_commit_loses_no_point(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runner_module, "_AGAIN_AFTER_S", 0.02)
    complete, left = points.complete, [3]

    def locked(connection: sa.Connection, point: point_service_pb2.RestorePoint) -> None:
        if left[0]:
            left[0] -= 1
            raise sa.exc.OperationalError("insert", {}, Exception("database is locked"))
        complete(connection, point)

    monkeypatch.setattr(points, "complete", locked)
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert left == [0]
    assert [point.point_id for point in await hub.points()] == [job.point_id]
    assert "database is locked" in job.warnings[0].message


async def test_a_catalog_that_is_locked_at_every_end_leaves_no_job_without_one(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runner_module, "_AGAIN_AFTER_S", 0.02)
    run, failing = hub.catalog.run, [0]

    async def sometimes(transaction: Any) -> Any:
        failing[0] += 1
        if failing[0] % 2:
            raise SendenseError(Reason.REASON_SERVICE_UNAVAILABLE, "the catalog cannot be used: forced")
        return await run(transaction)

    job = await hub.accept()
    monkeypatch.setattr(hub.catalog, "run", sometimes)
    async with asyncio.timeout(40):
        await hub.runner.run(job.job_id)
    monkeypatch.undo()
    ended = await hub.job(job.job_id)
    assert (ended.state, ended.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_SERVICE_UNAVAILABLE)


async def test_a_commit_mark_that_cannot_be_made_leaves_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    write_file = durable.write_file

    def broken(path: Path, content: bytes) -> None:
        write_file(path, content)
        raise OSError(5, "Input/output error")  # as a directory that cannot be flushed: the mark is there

    monkeypatch.setattr(durable, "write_file", broken)
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    assert (job.state, job.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_REPOSITORY_UNAVAILABLE)
    assert hub.agent.job.count("committed") == 0
    await hub.assert_nothing_left()


async def test_ff18_files_that_cannot_be_removed_keep_their_row(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    import shutil

    def broken(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(5, "Input/output error")

    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        monkeypatch.setattr(shutil, "rmtree", broken)
        await job.fail(Reason.REASON_SOURCE_READ_FAILED)

    hub.agent.script = script
    job = await hub.run()
    monkeypatch.undo()
    assert (job.state, job.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_SOURCE_READ_FAILED)
    assert [warning.code for warning in job.warnings] == ["files_left"]
    assert [row.job_id for row in await hub.rows()] == [job.job_id]
    assert len(files_of(hub.repository)) == 1


async def test_a_repository_that_is_gone_does_not_hide_why_a_write_failed(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        (hub.repository.root / "sendense-repository.json").rename(hub.repository.root / "away")
        await job.fail(Reason.REASON_TARGET_WRITE_FAILED, message="disk 2000 cannot be written")

    hub.agent.script = script
    job = await hub.run()
    assert job.failure.reason == Reason.REASON_TARGET_WRITE_FAILED
    assert str(hub.repository.root) in job.failure.metadata["repository"]


# --- cancelling ---


async def cancelled(hub: Hub, job: pb.Job, task: asyncio.Task[None]) -> pb.Job:
    answer = await hub.workshop.board.cancel(job.job_id)
    assert answer.state in {pb.JOB_STATE_CANCELLING, pb.JOB_STATE_CANCELLED}
    async with asyncio.timeout(40):
        await task
    ended = await hub.job(job.job_id)
    assert (ended.state, ended.failure.reason) == (pb.JOB_STATE_CANCELLED, Reason.REASON_CANCELLED)
    await hub.assert_nothing_left()
    return ended


async def test_a_job_is_cancelled_before_its_plan(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await asyncio.Event().wait()

    hub.agent.script = script
    job, task = await hub.begin()
    await until(lambda: hub.agent.jobs and hub.agent.job.acked == 1, "the agent works")
    ended = await cancelled(hub, job, task)
    assert ended.ended_in_phase == pb.JOB_PHASE_SNAPSHOT
    assert hub.agent.job.count("cancel") == 1
    assert hub.agent.cleaned == []


async def test_a_job_is_cancelled_in_the_copy(hub: Hub):
    ready = asyncio.Event()
    hub.agent.script = waits_in_copy(ready)
    job, task = await hub.begin()
    await ready.wait()
    ended = await cancelled(hub, job, task)
    assert ended.ended_in_phase == pb.JOB_PHASE_COPY
    assert hub.agent.job.count("cancel") == 1
    assert hub.agent.job.acked == hub.agent.job.events[-1].seq


async def test_an_agent_that_speaks_of_the_end_too_early_does_not_keep_a_job_from_being_cancelled(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_REMOVE_SNAPSHOT)
        await asyncio.Event().wait()

    hub.agent.script = script
    job, task = await hub.begin()
    await until(lambda: hub.agent.jobs and hub.agent.job.acked == 1, "the agent works")
    assert (await cancelled(hub, job, task)).ended_in_phase == pb.JOB_PHASE_PREPARE


@pytest.mark.parametrize("reason", [Reason.REASON_TARGET_WRITE_FAILED, Reason.REASON_TUNNEL_LOST])
async def test_ff09_a_qemu_nbd_that_was_killed_is_named_and_waited_for(hub: Hub, reason: Reason.ValueType):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        (child,) = qemu_nbd_of(job.exports_dir)
        os.kill(child, signal.SIGKILL)
        await job.fail(reason, message=export.export_name)

    hub.agent.script = script
    job = await hub.run()
    assert job.failure.reason == Reason.REASON_EXPORT_FAILED
    assert "qemu-nbd ended at the hub" in job.failure.message
    await hub.assert_nothing_left()
    dead = [
        words
        for words in (path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
        if words.rpartition(")")[2].split()[:2] == ["Z", str(os.getpid())] and "qemu-nbd" in words
    ]
    assert dead == []


async def test_a_job_is_cancelled_while_its_agent_says_nothing_any_more(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backup_job, "_DISMISS_WITHIN_S", 0.3)
    ready = asyncio.Event()
    hub.agent.script, hub.agent.obeys_cancel = waits_in_copy(ready), False
    job, task = await hub.begin()
    await ready.wait()
    await cancelled(hub, job, task)
    assert hub.agent.cleaned == [job.job_id]


async def test_a_job_that_is_committing_cannot_be_cancelled_and_succeeds(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    refused: list[SendenseError] = []
    from sendense_hub.repository import PointWriter

    commit = PointWriter.commit

    async def slow(self: PointWriter, document: Any) -> Any:
        (live,) = hub.workshop.board.running()
        with pytest.raises(SendenseError) as told:
            await hub.workshop.board.cancel(live.job.job_id)
        refused.append(told.value)
        return await commit(self, document)

    monkeypatch.setattr(PointWriter, "commit", slow)
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert [error.reason for error in refused] == [Reason.REASON_JOB_ENDED]


async def test_cancel_and_commit_at_one_moment_are_one_or_the_other(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    """Whoever is told CANCELLING gets no point, and whoever is refused gets one."""
    outcomes = set()
    for round_ in range(4):
        answers: list[object] = []
        racing: list[asyncio.Task[None]] = []

        async def race(answers: list[object] = answers) -> None:
            (live,) = hub.workshop.board.running()
            try:
                answers.append((await hub.workshop.board.cancel(live.job.job_id)).state)
            except SendenseError as error:
                answers.append(error.reason)

        async def script(
            job: ScriptedJob,
            racing: list[asyncio.Task[None]] = racing,
            race: Any = race,
            late: int = round_,
        ) -> None:
            (export,) = await job.snapshot_and_plan(plan_of())
            await job.copy(export, {})
            await job.say(copied=agent.DisksCopied())
            await asyncio.sleep(0.002 * late)
            racing.append(asyncio.create_task(race()))
            await job.hear("committed")
            await job.say(done=agent.BackupDone(snapshot_removed=True))

        hub.agent.script = script
        job = await hub.run(pb.BACKUP_MODE_FULL)
        await asyncio.gather(*racing)
        found = [point.job_id for point in await hub.points()].count(job.job_id)
        outcomes.add((answers[0], job.state, found))
    assert outcomes <= {
        (pb.JOB_STATE_CANCELLING, pb.JOB_STATE_CANCELLED, 0),
        (Reason.REASON_JOB_ENDED, pb.JOB_STATE_SUCCEEDED, 1),
    }
