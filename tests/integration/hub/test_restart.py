# SPDX-License-Identifier: Apache-2.0
"""The API as a process: killed, stopped, started again. Also the queue (DBOS) around the jobs."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from tests.integration.hub.kit import Api, World, api_command, api_of, hub_of, qemu_nbd_of, until
from tests.integration.hub.scripted_agent import ScriptedJob, backup, plan_of
from tests.integration.hub.test_backups import FIRST
from tests.integration.hub.test_commit import waits_in_copy

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import job_service_pb2, point_service_pb2
from sendense_hub.catalog import jobs
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs.recovery import recover

pytestmark = pytest.mark.integration


def workflows(world: World) -> dict[str, str]:
    """What DBOS holds of each job."""
    with sqlite3.connect(world.paths.state / "dbos.sqlite") as connection:
        rows = connection.execute("select workflow_uuid, status from workflow_status").fetchall()
    connection.close()
    return dict(rows)


async def listed(api: Api) -> list[point_service_pb2.RestorePoint]:
    return list((await api.points.ListPoints(point_service_pb2.ListPointsRequest())).points)


def files(world: World) -> list[Path]:
    root = world.paths.state / "repository"
    return [path for path in root.iterdir() if path.name not in {"sendense-repository.json", "hub-catalogs"}]


async def test_ff13_a_hub_that_is_killed_in_the_copy_goes_on_with_the_job_and_leaves_nothing(world: World):
    ready = asyncio.Event()
    world.agent.script = waits_in_copy(ready)
    async with api_of(world) as api:
        await api.register()
        job = await api.start_backup()
        await ready.wait()
        assert len(qemu_nbd_of(world.paths.exports_dir)) == 1
        await api.kill()
    assert len(files(world)) == 1
    (world.paths.exports_dir / "killed-too.sock").touch()
    world.agent.script = backup(FIRST)
    async with api_of(world) as api:
        ended = await api.ended(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
        assert ended.attempt == 2
        (interruption,) = ended.interruptions
        assert interruption.failure.reason == Reason.REASON_HUB_RESTARTED
        assert (interruption.phase, interruption.went_on) == (pb.JOB_PHASE_COPY, "same_snapshot")
        (point,) = await listed(api)
        assert [path.name for path in files(world)[0].glob("*/*")] == [point.point_id]
        await until(lambda: not list(world.paths.exports_dir.iterdir()), "no socket is left")
        assert world.agent.starts[-1].resume.snapshot_moref == plan_of().snapshot_moref
        await until(
            lambda: set(workflows(world).values()) == {"SUCCESS"}, "the queue has nothing of it any more"
        )


def queue_is(world: World, statement: str) -> None:
    """Takes the queue away or gives it back, as a full disk and room would."""
    with sqlite3.connect(world.paths.state / "dbos.sqlite", timeout=20) as connection:
        connection.execute(statement)
    connection.close()


async def test_a_job_that_cannot_be_queued_when_it_is_accepted_gets_its_turn_when_it_can(world: World):
    world.agent.script = backup(FIRST)
    async with api_of(world) as api:
        await api.register()
        queue_is(world, "alter table workflow_status rename to away")
        job = await api.start_backup()
        assert job.state == pb.JOB_STATE_QUEUED
        queue_is(world, "alter table away rename to workflow_status")
        ended = await api.ended(job.job_id)
        assert (ended.state, ended.attempt) == (pb.JOB_STATE_SUCCEEDED, 1), ended.failure
        assert list(workflows(world)) == [f"{job.job_id}.1"]


async def test_a_hub_that_is_killed_just_after_the_commit_mark_has_succeeded(world: World):
    """The catalog is as the hub left it between mark and row: the last step is made up for."""
    async with api_of(world) as api:
        await api.register()
        held = asyncio.Event()

        async def script(job: ScriptedJob) -> None:
            (export,) = await job.snapshot_and_plan(plan_of())
            await job.copy(export, FIRST[2000])
            await job.say(copied=agent.DisksCopied())
            await job.hear("committed")
            held.set()
            await asyncio.Event().wait()

        world.agent.script = script
        job = await api.start_backup()
        await held.wait()
        await api.kill()
    (document,) = (world.paths.state / "repository").glob("*/*/*/point.json")
    with sqlite3.connect(world.paths.state / "catalog.sqlite") as connection:
        connection.execute("delete from point_disks")
        connection.execute("update restore_points set state = 1")
        connection.execute("update jobs set point_id = '', phase = 6")
    connection.close()
    async with api_of(world) as api:
        ended = await api.job(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED
        assert ended.point_id == document.parent.name
        assert [warning.code for warning in ended.warnings] == ["hub_restarted"]
        (point,) = await listed(api)
        assert point.point_id == ended.point_id
        assert [disk.change_id for disk in point.disks] == ["52 aa/2000"]
        verified = [
            answer
            async for answer in api.points.VerifyPoint(
                point_service_pb2.VerifyPointRequest(point_id=point.point_id)
            )
        ]
        assert verified[-1].done


async def test_a_stopped_hub_interrupts_what_runs_and_keeps_what_is_queued(world: World):
    names = ["web", "other", "queued"]
    machines = {name: f"5029aa00-0000-4000-8000-00000000000{n}" for n, name in enumerate(names)}
    world.agent.machines = [
        agent_service_pb2.VirtualMachine(instance_uuid=machine, moref=name, name=name)
        for name, machine in machines.items()
    ]
    copying: list[str] = []

    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of(vm_instance_uuid=job.start.vm_instance_uuid))
        copying.append(job.start.vm_instance_uuid)
        await asyncio.Event().wait()

    world.agent.script = script
    async with api_of(world, "--concurrency", "2") as api:
        await api.register()
        running = [await api.start_backup(vm=name) for name in names[:2]]
        await until(lambda: len(copying) == 2, "two run")
        queued = await api.start_backup(vm="queued")
        assert queued.state == pb.JOB_STATE_QUEUED
        assert await api.stop() == 0
    assert qemu_nbd_of(world.paths.exports_dir) == []
    assert sorted(world.agent.jobs) == sorted(job.job_id for job in running), "the third did not get its turn"
    assert [job.count("cancel") for job in world.agent.jobs.values()] == [0, 0], "their snapshots stay"

    async def works(job: ScriptedJob) -> None:
        await backup(FIRST, plan_of(vm_instance_uuid=job.start.vm_instance_uuid))(job)

    world.agent.script = works
    async with api_of(world) as api:
        for job in running:
            ended = await api.ended(job.job_id)
            assert (ended.state, ended.attempt) == (pb.JOB_STATE_SUCCEEDED, 2), ended.failure
            reasons = [each.failure.reason for each in ended.interruptions]
            assert reasons == [Reason.REASON_SERVICE_STOPPING]
        after = await api.ended(queued.job_id)
        assert (after.state, after.attempt) == (pb.JOB_STATE_SUCCEEDED, 1), after.failure


async def test_a_job_that_was_kept_and_not_queued_runs_after_the_next_start(world: World):
    world.agent.script = backup(FIRST)
    async with hub_of(world) as hub:
        job = await hub.accept()
    async with api_of(world) as api:
        ended = await api.ended(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure


async def test_a_client_that_hangs_up_leaves_no_job_without_a_turn(world: World):
    request_id = str(uuid.uuid4())
    world.agent.script = backup(FIRST)
    async with api_of(world) as api:
        await api.register()
        for delay_s in (0.0, 0.01, 0.02):
            call = asyncio.create_task(api.start_backup(request_id))
            await asyncio.sleep(delay_s)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        job = await api.start_backup(request_id)
        ended = await api.ended(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
        found = (await api.jobs.ListJobs(job_service_pb2.ListJobsRequest())).jobs
        assert [each.job_id for each in found] == [job.job_id]


async def test_a_connection_that_closes_leaves_no_workflow_pending(world: World):
    """The engine takes a CancelledError from a closed channel for a workflow that goes on elsewhere."""

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        if job.start.attempt == 1:
            world.agent.jobs.pop(job.start.job_id)
            await job.drop(grpc.StatusCode.CANCELLED)
        else:
            await job.copy(export, FIRST[2000])
            await job.finish()

    world.agent.script = script
    async with api_of(world) as api:
        await api.register()
        job = await api.start_backup()
        ended = await api.ended(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
        assert [each.failure.reason for each in ended.interruptions] == [Reason.REASON_JOB_LOST]
        await until(lambda: set(workflows(world).values()) == {"SUCCESS"}, "the queue is done with it")
        assert qemu_nbd_of(world.paths.exports_dir) == []


async def test_a_cancelled_queued_job_never_runs(world: World):
    ready = asyncio.Event()
    world.agent.script = waits_in_copy(ready)
    other = agent_service_pb2.VirtualMachine(instance_uuid="5029bb", moref="vm-2", name="other")
    world.agent.machines.append(other)
    async with api_of(world, "--concurrency", "1") as api:
        await api.register()
        running = await api.start_backup()
        await ready.wait()
        queued = await api.start_backup(vm="other")
        answer = await api.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=queued.job_id))
        assert answer.job.state == pb.JOB_STATE_CANCELLED
        await api.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=running.job_id))
        assert (await api.ended(running.job_id)).state == pb.JOB_STATE_CANCELLED
        await until(lambda: workflows(world).get(f"{queued.job_id}.1") == "SUCCESS", "its turn has passed")
        assert (await api.job(queued.job_id)).attempt == 0
        assert list(world.agent.jobs) == [running.job_id]


async def test_a_second_hub_does_not_start_on_the_same_state(world: World):
    async with api_of(world):
        second = await asyncio.create_subprocess_exec(
            *api_command(world), stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(40):
            _, words = await second.communicate()
        assert second.returncode == 1
        assert b"another hub uses the state directory" in words


# --- recovery, without a process ---


async def interrupted(world: World, *, committed: bool) -> pb.Job:
    """A job that the catalog has as running, with its point's files."""
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        job = await hub.run()
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
        (point,) = await hub.points()
        if not committed:
            (hub.repository.root / point.directory / "point.json").unlink()
    with sqlite3.connect(world.paths.state / "catalog.sqlite") as connection:
        connection.execute("delete from point_disks")
        connection.execute("update restore_points set state = 1, complete_time_us = null")
        connection.execute("update jobs set state = 2, phase = 6, point_id = '', end_time_us = null")
    connection.close()
    return job


@pytest.mark.parametrize("committed", [True, False])
async def test_a_repository_that_is_not_mounted_at_the_start_loses_no_point(world: World, committed: bool):
    job = await interrupted(world, committed=committed)
    world.agent.jobs.clear()
    async with hub_of(world, register=False, patience=Patience()) as hub:
        root = hub.repository.root
        away = root.with_name("away")
        root.rename(away)
        root.mkdir()  # the empty mount point
        await recover(hub.workshop)
        waits = await hub.job(job.job_id)
        assert waits.state == pb.JOB_STATE_WAITING
        assert [each.failure.reason for each in waits.interruptions] == [Reason.REASON_HUB_RESTARTED]
        await hub.runner.run(job.job_id)
        waits = await hub.job(job.job_id)
        assert [each.failure.reason for each in waits.interruptions][1:] == [
            Reason.REASON_REPOSITORY_UNAVAILABLE
        ]
        assert [row.job_id for row in await hub.rows()] == [job.job_id]
        root.rmdir()
        away.rename(root)
        await hub.runner.run(job.job_id)
        ended = await hub.job(job.job_id)
        assert ended.state == pb.JOB_STATE_SUCCEEDED, ended.failure
        assert [point.job_id for point in await hub.points()] == [job.job_id]
        assert len(list(hub.repository.directories())) == 1
        assert len(hub.agent.starts) == (1 if committed else 2)


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_cancel_takes_no_point_away_that_has_its_commit_mark(world: World, damaged: bool):
    job = await interrupted(world, committed=True)
    async with hub_of(world, register=False, patience=Patience()) as hub:
        root = hub.repository.root
        root.rename(root.with_name("away"))
        root.mkdir()
        await recover(hub.workshop)
        assert (await hub.job(job.job_id)).state == pb.JOB_STATE_WAITING
        root.rmdir()
        root.with_name("away").rename(root)
        (mark,) = root.glob("*/*/*/point.json")
        if damaged:
            mark.write_text(mark.read_text().replace('"disks"', '"disk"'))
        await hub.workshop.board.cancel(job.job_id)
        await hub.runner.run(job.job_id)
        ended = await hub.job(job.job_id)
        assert mark.exists()
        assert [row.job_id for row in await hub.rows()] == [job.job_id]
        if damaged:
            assert ended.state == pb.JOB_STATE_CANCELLED
            assert "files_left" in [each.code for each in ended.warnings]
        else:
            assert (ended.state, ended.point_id) == (pb.JOB_STATE_SUCCEEDED, mark.parent.name)
            assert [point.job_id for point in await hub.points()] == [job.job_id]


async def test_recovery_ends_a_job_that_was_being_cancelled_as_cancelled(world: World):
    await interrupted(world, committed=False)
    with sqlite3.connect(world.paths.state / "catalog.sqlite") as connection:
        connection.execute("update jobs set state = 3, phase = 5")
    connection.close()
    async with hub_of(world, register=False) as hub:
        await recover(hub.workshop)
        (job,) = await hub.catalog.run(lambda connection: jobs.listed(connection, limit=9))
        assert job.state == pb.JOB_STATE_CANCELLED
        await hub.assert_nothing_left()


@pytest.mark.parametrize(
    ("died", "words"),
    [
        ("", "the hub was restarted while job "),
        ("killed by SIGKILL", "the hub's API process died (killed by SIGKILL) while job "),
    ],
)
async def test_an_interrupted_job_says_which_process_it_was(world: World, died: str, words: str):
    await interrupted(world, committed=False)
    async with hub_of(world, register=False) as hub:
        await recover(hub.workshop, died)
        (job,) = await hub.catalog.run(lambda connection: jobs.listed(connection, limit=9))
        (interruption,) = job.interruptions
        assert interruption.failure.reason == Reason.REASON_HUB_RESTARTED
        assert interruption.failure.message.startswith(words)


async def test_recovery_finishes_a_deletion_and_leaves_queued_jobs_alone(world: World):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
        queued = await hub.accept()
        with sqlite3.connect(world.paths.state / "catalog.sqlite") as connection:
            connection.execute("update restore_points set state = 3")
        connection.close()
        await recover(hub.workshop)
        await hub.assert_nothing_left()
        assert (await hub.job(queued.job_id)).state == pb.JOB_STATE_QUEUED


def unlink(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("file", "damage"), [("*.qcow2", unlink), ("*.ledger", unlink), ("*.ledger", shorten)]
)
async def test_recovery_does_not_call_a_point_complete_that_lacks_what_belongs_to_it(
    world: World, file: str, damage: Callable[[Path], None]
):
    job = await interrupted(world, committed=True)
    async with hub_of(world, register=False) as hub:
        (path,) = hub.repository.root.glob(f"*/*/*/{file}")
        damage(path)
        await recover(hub.workshop)
        assert (await hub.job(job.job_id)).state == pb.JOB_STATE_FAILED
        assert await hub.points() == []
        assert len(await hub.rows()) == 1, "what there is of it stays for a person"


async def test_recovery_twice_is_recovery_once(world: World):
    job = await interrupted(world, committed=True)
    async with hub_of(world, register=False) as hub:
        await recover(hub.workshop)
        once = await hub.job(job.job_id)
        await recover(hub.workshop)
        assert await hub.job(job.job_id) == once
        assert once.state == pb.JOB_STATE_SUCCEEDED
