# SPDX-License-Identifier: Apache-2.0
"""Each kind of thing that may be left is left, and goes; and what is not ours, or in use, stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hub.kit import Hub, World, api_of, hub_of, qemu_nbd_of, until
from tests.integration.hub.scripted_agent import (
    CAPACITY,
    MACHINE,
    MACHINE_NAME,
    VCENTER,
    VCENTER_UUID,
    plan_of,
)
from tests.integration.hub.test_backups import FIRST
from tests.integration.hub.test_commit import waits_in_copy
from tests.integration.repository.test_part_files import killed_at

from sendense.agent.v1.agent_service_pb2 import FoundSnapshot
from sendense.common.v1.act_pb2 import ACT_OUTCOME_DONE, ACT_OUTCOME_FAILED, ACT_OUTCOME_REPORTED, Act
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2, system_service_pb2
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceStub
from sendense_hub.catalog import cleanups, job_plans, jobs, points
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.catalog.job_plans import JobPlan
from sendense_hub.jobs import found_snapshots
from sendense_hub.jobs.board import end
from sendense_hub.repository import Owner, PointWriter, layers

pytestmark = pytest.mark.integration

ENDED, RUNNING = pb.JOB_STATE_FAILED, pb.JOB_STATE_RUNNING
DIRECTORY = f"{VCENTER_UUID}/{MACHINE}"


async def job(hub: Hub, state: pb.JobState.ValueType = ENDED) -> pb.Job:
    """One of another life of the hub."""
    made = await hub.accept(vm_instance_uuid=str(uuid.uuid4()))
    if state != ENDED:
        return made
    end(made, state)
    await hub.catalog.run(lambda connection: jobs.write(connection, made))
    return made


async def half_point(hub: Hub, owner: Owner | None) -> Path:
    """A directory with a layer and a ledger, and no row."""
    writer = await PointWriter.begin(hub.repository, VCENTER_UUID, MACHINE, str(uuid.uuid4()), owner)
    await writer.create_layer(2000, CAPACITY, None)
    await writer.suspend()
    return hub.repository.point_path(writer.directory)


async def row(hub: Hub, directory: str, job_id: str, state: point_service_pb2.PointState.ValueType) -> str:
    """A point that is not complete."""
    point = point_service_pb2.RestorePoint(
        point_id=Path(directory).name,
        job_id=job_id,
        vcenter_name=VCENTER,
        vcenter_uuid=VCENTER_UUID,
        vm_name=MACHINE_NAME,
        vm_instance_uuid=MACHINE,
        repository_name="default",
        directory=directory,
    )
    await hub.catalog.run(lambda connection: points.begin(connection, point))
    if state == point_service_pb2.POINT_STATE_DELETING:
        await hub.catalog.run(lambda connection: points.set_deleting(connection, point.point_id))
    return point.point_id


async def repair(hub: Hub) -> list[Act]:
    """What the hub itself did and found."""
    acts = await hub.reconciler().by_hand()
    assert acts.pop() == (await hub.workshop.sites.reconcile("site-a"))[0], "the site is tidied too"
    return acts


def only(acts: list[Act], what: str, outcome: int = ACT_OUTCOME_DONE) -> Act:
    (act,) = acts
    assert (act.what, act.outcome) == (what, outcome), act
    assert act.where
    assert act.why
    return act


# --- jobs ---


async def test_a_job_that_nothing_runs_any_more_waits_for_its_next_attempt_and_one_that_runs_is_left_alone(
    hub: Hub,
):
    lost = await hub.accept(vm_instance_uuid=str(uuid.uuid4()))
    lost.state, lost.phase, lost.attempt = RUNNING, pb.JOB_PHASE_COPY, 1
    await hub.catalog.run(lambda connection: jobs.write(connection, lost))
    with hub.workshop.board.run(lost):
        assert await repair(hub) == []
    assert lost.job_id in only(await repair(hub), "lost_job").where
    found = await hub.catalog.run(lambda connection: jobs.get(connection, lost.job_id))
    assert found.state == pb.JOB_STATE_WAITING
    (interruption,) = found.interruptions
    assert (interruption.phase, interruption.attempt) == (pb.JOB_PHASE_COPY, 1)
    assert "nothing ran" in interruption.failure.message
    assert await repair(hub) == []


async def lost_in_the_copy(hub: Hub, lost: pb.Job, attempt: int) -> pb.Job:
    """As a defect leaves it; after a round."""
    lost.state, lost.phase, lost.attempt = RUNNING, pb.JOB_PHASE_COPY, attempt
    await hub.catalog.run(lambda connection: jobs.write(connection, lost))
    await repair(hub)
    return await hub.catalog.run(lambda connection: jobs.get(connection, lost.job_id))


async def test_a_job_that_is_lost_again_and_again_is_given_up(hub: Hub):
    lost = await hub.accept(vm_instance_uuid=str(uuid.uuid4()))
    states: list[pb.JobState.ValueType] = []
    while lost.state != ENDED and len(states) < 7:
        lost = await lost_in_the_copy(hub, lost, len(states) + 1)
        states.append(lost.state)
    assert states == [pb.JOB_STATE_WAITING] * 4 + [ENDED]
    assert lost.failure.reason == Reason.REASON_INTERNAL


async def test_a_lost_job_that_is_cancelled_while_it_is_looked_at_stays_cancelled(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    lost = await hub.accept(vm_instance_uuid=str(uuid.uuid4()))
    lost.state, lost.phase, lost.attempt = RUNNING, pb.JOB_PHASE_COPY, 1
    await hub.catalog.run(lambda connection: jobs.write(connection, lost))
    of_job = points.of_job

    def cancelled_meanwhile(connection: Any, job_id: str) -> Any:
        asked = jobs.get(connection, job_id)
        asked.state = pb.JOB_STATE_CANCELLING
        jobs.write(connection, asked)
        return of_job(connection, job_id)

    monkeypatch.setattr(points, "of_job", cancelled_meanwhile)
    assert await repair(hub) == []
    found = await hub.catalog.run(lambda connection: jobs.get(connection, lost.job_id))
    assert found.state == pb.JOB_STATE_CANCELLING


# --- exports ---


async def test_a_file_that_a_killed_hub_was_exporting_to_goes(hub: Hub, tmp_path: Path):
    killed_at(hub.world.paths.unfinished_exports_dir, tmp_path / "disk.raw")
    (left,) = tmp_path.iterdir()
    with hub.workshop.parts.beside(tmp_path / "another.raw") as part:
        assert only(await repair(hub), "unfinished_export").where == str(left)
        assert list(tmp_path.iterdir()) == [part]
    assert await repair(hub) == []


# --- points ---


async def test_a_half_point_of_an_ended_job_goes_with_its_row(hub: Hub):
    path = await half_point(hub, None)
    ended = await job(hub)
    await row(hub, f"{DIRECTORY}/{path.name}", ended.job_id, point_service_pb2.POINT_STATE_WRITING)
    assert ended.job_id in only(await repair(hub), "half_point").why
    await hub.assert_nothing_left()
    assert await repair(hub) == []


async def test_a_point_of_a_job_that_has_not_ended_is_left_to_it(hub: Hub):
    path = await half_point(hub, None)
    active = await job(hub, RUNNING)
    await row(hub, f"{DIRECTORY}/{path.name}", active.job_id, point_service_pb2.POINT_STATE_WRITING)
    assert await repair(hub) == []
    assert (path / "disk-2000.qcow2").exists()
    assert len(await hub.rows()) == 1


async def test_a_commit_whose_mark_is_there_is_finished(hub: Hub):
    made = await hub.run()
    (before,) = await hub.points()
    await hub.catalog.run(
        lambda connection: points.begin(
            connection, point_service_pb2.RestorePoint.FromString(before.SerializeToString())
        )
    )
    assert await hub.points() == []
    assert made.job_id in only(await repair(hub), "commit").why
    (after,) = await hub.points()
    assert after == before


async def test_a_deletion_is_finished_but_one_that_runs_is_left_alone(hub: Hub):
    await hub.run()
    (point,) = await hub.points()
    await hub.catalog.run(lambda connection: points.set_deleting(connection, point.point_id))
    with hub.workshop.locks.deleting(point.point_id):
        assert await repair(hub) == []
    with hub.workshop.locks.reading([point.point_id]):
        assert await repair(hub) == []
    assert hub.repository.has_mark(point.directory)
    only(await repair(hub), "deletion")
    await hub.assert_nothing_left()


async def test_where_the_repository_is_not_mounted_nothing_is_concluded(hub: Hub):
    path = await half_point(hub, None)
    ended = await job(hub)
    await row(hub, f"{DIRECTORY}/{path.name}", ended.job_id, point_service_pb2.POINT_STATE_WRITING)
    marker = hub.repository.root / "sendense-repository.json"
    marker.rename(marker.with_suffix(".away"))
    acts = await repair(hub)
    assert {(act.what, act.outcome) for act in acts} == {
        ("half_point", ACT_OUTCOME_FAILED),
        ("repository", ACT_OUTCOME_FAILED),
    }
    assert len(await hub.rows()) == 1
    marker.with_suffix(".away").rename(marker)
    only(await repair(hub), "half_point")


# --- directories without a row ---


async def test_a_directory_of_an_ended_job_of_this_hub_goes(hub: Hub):
    ended = await job(hub)
    path = await half_point(hub, Owner(hub.catalog.hub_id, ended.job_id))
    (path / ".partsx").mkdir()  # where a digester of the hub was killed
    (path / ".partsx" / "1").touch()
    only(await repair(hub), "half_point")
    await hub.assert_nothing_left()


async def test_a_directory_that_is_not_provably_ours_is_told_and_left(hub: Hub):
    ended, active = await job(hub), await job(hub, RUNNING)
    mine = hub.catalog.hub_id
    told = {
        await half_point(hub, None): "nothing says whose it is",
        await half_point(hub, Owner(str(uuid.uuid4()), ended.job_id)): "hub",
        await half_point(hub, Owner(mine, str(uuid.uuid4()))): "is not known here",
    }
    foreign = await half_point(hub, Owner(mine, ended.job_id))
    (foreign / "notes.txt").touch()
    told[foreign] = "files in it that are no hub's"
    kept = await half_point(hub, Owner(mine, active.job_id))
    acts = await repair(hub)
    assert {act.what for act in acts} == {"unknown_directory"}
    assert {act.outcome for act in acts} == {ACT_OUTCOME_REPORTED}
    by_place = {Path(act.where).name: act.why for act in acts}
    assert by_place.keys() == {path.name for path in told}
    for path, words in told.items():
        assert words in by_place[path.name]
    assert all((path / "disk-2000.qcow2").exists() for path in [*told, kept])


async def test_a_complete_point_that_the_catalog_does_not_know_is_left_to_a_scan(hub: Hub):
    await hub.run()
    (point,) = await hub.points()
    await hub.catalog.run(lambda connection: points.forget(connection, point.point_id))
    act = only(await repair(hub), "unlisted_point", ACT_OUTCOME_REPORTED)
    assert "sendense repository scan default" in act.remedy
    assert hub.repository.has_mark(point.directory)


async def test_links_and_the_copies_of_the_catalog_are_no_directories_of_points(hub: Hub, tmp_path: Path):
    (tmp_path / "vm" / "point").mkdir(parents=True)
    (hub.repository.root / "linked").symlink_to(tmp_path)
    (hub.repository.root / "hub-catalogs" / "x" / "y").mkdir(parents=True)
    (hub.repository.root / "a" / "b" / "c").mkdir(parents=True)
    act = only(await repair(hub), "unknown_directory", ACT_OUTCOME_REPORTED)
    assert act.where == "default:a/b/c"


# --- what says whose a half point is, and scratch ---


@contextlib.asynccontextmanager
async def copying(hub: Hub) -> AsyncIterator[str]:
    """A job that copies until the block ends; its ID."""
    ready = asyncio.Event()
    hub.agent.script = waits_in_copy(ready)
    running = await hub.run_later()
    await ready.wait()
    job_id = hub.agent.job.start.job_id
    try:
        yield job_id
    finally:
        await hub.workshop.board.cancel(job_id)
        assert (await running).state == pb.JOB_STATE_CANCELLED


async def test_a_point_says_whose_it_is_while_it_is_written(hub: Hub):
    async with copying(hub) as job_id:
        (path,) = hub.repository.root.glob("*/*/*")
        assert json.loads((path / ".writing").read_bytes()) == {
            "hub_id": hub.catalog.hub_id,
            "job_id": job_id,
        }
        assert await repair(hub) == []
        assert (path / "disk-2000.qcow2").exists()


async def test_scratch_goes_when_a_point_is_gone_on_with_and_at_its_commit(hub: Hub):
    point_id = str(uuid.uuid4())

    def litter(path: Path) -> list[Path]:
        left = [
            path / name for name in ("disk-2000.digests", ".point.json.new", ".probe.qcow2", "..writing.new")
        ]
        for each in left:
            each.touch()
        (path / ".parts1").mkdir()
        (path / ".parts1" / "0").touch()
        return [*left, path / ".parts1"]

    owner = Owner("h", "j")
    writer = await PointWriter.begin(hub.repository, VCENTER_UUID, MACHINE, point_id, owner)
    await writer.create_layer(2000, CAPACITY, None)
    await writer.suspend()
    path = hub.repository.point_path(writer.directory)
    left = litter(path)
    (path / "a person's").touch()
    await PointWriter.begin(hub.repository, VCENTER_UUID, MACHINE, point_id, owner)
    assert not [each for each in left if each.exists()]
    assert {each.name for each in path.iterdir()} == {
        "disk-2000.qcow2", "disk-2000.ledger", ".writing", "a person's"
    }  # fmt: skip


async def test_a_complete_point_holds_nothing_but_its_files(hub: Hub):
    hub.agent.script = _littering(hub)
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED
    (point,) = await hub.points()
    names = {each.name for each in hub.repository.point_path(point.directory).iterdir()}
    assert names == {"disk-2000.qcow2", "disk-2000.ledger", "point.json"}


def _littering(hub: Hub):
    async def script(agent_job) -> None:
        (export,) = await agent_job.snapshot_and_plan(plan_of())
        await agent_job.copy(export, FIRST[2000])
        (path,) = hub.repository.root.glob("*/*/*")
        (path / "disk-2001.digests").touch()
        (path / ".parts1").mkdir()
        await agent_job.finish()

    return script


# --- processes and sockets ---


@pytest.fixture
async def stray_of(hub: Hub, short_tmp: Path) -> AsyncIterator[Callable[..., Awaitable[int]]]:
    """Starts qemu-nbd without a parent, as a hub leaves it that does not take it along."""
    pids = []

    async def start(at: Path, *options: str) -> int:
        layer = short_tmp / f"{at.name}.qcow2"
        await layers.create(layer, CAPACITY, None)
        pid_file = short_tmp / f"{at.name}.pid"
        child = await asyncio.create_subprocess_exec(
            "qemu-nbd", "--fork", "--persistent", "--format=qcow2", f"--socket={at}",
            f"--pid-file={pid_file}", *options, str(layer),
        )  # fmt: skip
        assert await child.wait() == 0
        pids.append(int(pid_file.read_text()))
        return pids[-1]

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").exists() and bool(Path(f"/proc/{pid}/cmdline").read_bytes())


async def test_ff13_a_qemu_nbd_that_no_open_export_owns_is_ended_and_nobody_elses(
    hub: Hub, stray_of, short_tmp: Path
):
    exports = hub.workshop.exports_dir
    stray = await stray_of(exports / "old-1-2000.sock")
    (exports / "v").mkdir()
    nested = await stray_of(exports / "v" / "0.sock")
    somebodys = await stray_of(short_tmp / "mine.sock", "--read-only")
    async with copying(hub):
        owned = set(qemu_nbd_of(exports)) - {stray, nested}
        assert len(owned) == 1
        acts = await repair(hub)
        assert sorted(act.where for act in acts if act.what == "stray_export") == sorted(
            f"qemu-nbd {pid}" for pid in (stray, nested)
        )
        assert set(qemu_nbd_of(exports)) == owned, "what a running job writes through stays"
        assert len([path for path in exports.iterdir() if path.is_socket()]) == 1
    assert not runs(stray)
    assert runs(somebodys)


async def test_a_stale_socket_goes_and_a_file_stays(hub: Hub):
    left = hub.workshop.exports_dir / "old.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(left))
    note = hub.workshop.exports_dir / "note"
    note.touch()
    assert str(left) == only(await repair(hub), "stale_socket").where
    assert not left.exists()
    assert note.exists()


# --- plans and snapshots ---


async def test_a_plan_of_an_ended_job_is_forgotten_and_one_of_an_active_job_kept(hub: Hub):
    ended, active = await job(hub), await job(hub, RUNNING)
    for each in (ended, active):
        await hub.catalog.run(
            lambda connection, each=each: job_plans.keep(connection, each.job_id, JobPlan(plan_of(), 1, {}))  # type: ignore[misc]
        )
    assert ended.job_id in only(await repair(hub), "job_plan").where
    assert await hub.catalog.run(lambda connection: job_plans.get(connection, active.job_id)) is not None


def snapshot(job_id: str, moref: str = "snapshot-1", machine: str = MACHINE) -> FoundSnapshot:
    return FoundSnapshot(job_id=job_id, vm_instance_uuid=machine, vm_name=MACHINE_NAME, snapshot_moref=moref)


async def test_ff27_snapshots_of_ended_and_unknown_jobs_are_removed_and_those_of_active_jobs_stay(hub: Hub):
    ended, active, unknown = await job(hub), await job(hub, RUNNING), str(uuid.uuid4())
    stays = snapshot(active.job_id)
    hub.agent.snapshots = [snapshot(ended.job_id), stays, snapshot(unknown)]
    acts = await repair(hub)
    assert sorted(act.what for act in acts) == ["clean_up", "clean_up", "snapshot", "snapshot"]
    assert {act.outcome for act in acts} == {ACT_OUTCOME_DONE}
    assert hub.agent.snapshots == [stays]
    assert sorted(hub.agent.cleaned) == sorted([ended.job_id, unknown])
    assert await hub.catalog.run(cleanups.listed) == []


async def test_a_snapshot_whose_removal_is_on_its_way_stays_with_its_vm(hub: Hub):
    """Also when another VM, registered from a copy of its files, has the same snapshot."""
    ended = await job(hub)
    pending = PendingCleanup(ended.job_id, VCENTER, MACHINE, MACHINE_NAME)
    await hub.catalog.run(lambda connection: cleanups.add(connection, pending))
    hub.agent.snapshots, hub.agent.cleans = [snapshot(ended.job_id, machine=str(uuid.uuid4()))], False
    (act,) = await repair(hub)
    assert (act.what, act.outcome) == ("clean_up", ACT_OUTCOME_FAILED)
    assert await hub.catalog.run(cleanups.listed) == [pending]


async def test_a_vcenter_is_asked_once_after_the_start_and_then_every_half_hour(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    reconciler = hub.reconciler()
    looking = reconciler._snapshots
    await looking.look()
    await looking.look()
    assert hub.agent.finds_count == 1
    monkeypatch.setattr(found_snapshots, "_EVERY_S", 0.0)
    await looking.look()
    assert hub.agent.finds_count == 2


async def test_a_vcenter_that_was_added_since_the_start_is_not_asked_at_once(hub: Hub):
    await hub.reconciler(known_vcenters=())._snapshots.look()
    assert hub.agent.finds_count == 0


async def test_a_site_that_is_away_is_asked_when_it_is_back_and_told_by_hand(hub: Hub):
    away = hub.world.agent_socket.with_suffix(".away")
    hub.world.agent_socket.rename(away)
    reconciler = hub.reconciler()
    assert await reconciler._snapshots.look() == []
    act = only(await reconciler.by_hand(), "snapshots_not_looked_for", ACT_OUTCOME_REPORTED)
    assert "not connected" in act.why
    away.rename(hub.world.agent_socket)
    await reconciler._snapshots.look()
    assert hub.agent.finds_count == 1


async def test_rule_24_a_refused_password_is_not_tried_to_find_snapshots(hub: Hub):
    hub.agent.refuses_logins = True
    reconciler = hub.reconciler()
    assert await reconciler._snapshots.look() == []
    assert hub.agent.logins_count == 1
    for _ in range(2):
        act = only(await repair(hub), "snapshots_not_looked_for", ACT_OUTCOME_REPORTED)
        assert "password" in act.remedy
    assert hub.agent.logins_count == 1


# --- the rounds ---


async def test_what_is_found_is_logged_once_and_every_act(hub: Hub, caplog: pytest.LogCaptureFixture):
    path = await half_point(hub, None)
    reconciler = hub.reconciler()
    for _ in range(3):
        await reconciler.by_hand()
    said = [each.getMessage() for each in caplog.records if path.name in each.getMessage()]
    assert len(said) == 1
    assert "unknown_directory" in said[0]
    for _ in range(2):
        (hub.workshop.exports_dir / "old.sock").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(hub.workshop.exports_dir / "old.sock"))
        await reconciler.by_hand()
    assert len([1 for each in caplog.records if "stale_socket" in each.getMessage()]) == 2


async def test_a_hub_reconciles_when_it_starts_and_when_it_is_asked(world: World):
    """The whole API as a process."""
    async with hub_of(world) as hub:
        ended = await job(hub)
        path = await half_point(hub, Owner(hub.catalog.hub_id, ended.job_id))
        hub_id = hub.catalog.hub_id
    async with api_of(world) as api:
        await until(lambda: not path.exists(), "the first round")
        async with hub_of(world, register=False) as hub:
            assert hub.catalog.hub_id == hub_id
            await half_point(hub, Owner(hub_id, ended.job_id))
        answer = await SystemServiceStub(api.channel).Reconcile(
            system_service_pb2.ReconcileRequest(), timeout=60
        )
        assert [act.what for act in answer.acts] == ["half_point", "stale_socket"]  # the latter at the site
