# SPDX-License-Identifier: Apache-2.0
"""Backups that work, and what is refused on the way: the hub's half with real layers, exports and rows."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest
from tests.integration.hub.kit import Hub, files_of, qemu_nbd_of
from tests.integration.hub.scripted_agent import (
    CAPACITY,
    MIB,
    ScriptedJob,
    backup,
    checkpoint,
    incremental,
    plan_of,
    planned,
)
from tests.integration.repository.kit import noise, patch

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.domain import times
from sendense_hub.jobs import point_record
from sendense_hub.repository import Record, verify_point

pytestmark = pytest.mark.integration

TWO = plan_of(planned(2000), planned(2001))
FIRST = {2000: {0: noise(1, 2 * MIB), CAPACITY - 512: noise(2, 512)}, 2001: {MIB: noise(3, 4096)}}
THEN = {2000: {MIB: noise(4, 65536)}}


async def digests(hub: Hub, point_id: str) -> dict[int, str]:
    point = next(each for each in await hub.points() if each.point_id == point_id)
    document = hub.repository.read_document(point.directory)
    return {
        report.disk_key: report.sha256.hex()
        async for report in verify_point(hub.repository, document, hub.workshop.exports_dir)
        if report.sha256
    }


def sha256(*writes: dict[int, bytes]) -> str:
    image = bytearray(CAPACITY)
    for each in writes:
        patch(image, each)
    return hashlib.sha256(image).hexdigest()


async def test_a_full_and_an_incremental_give_back_every_byte(hub: Hub):
    hub.agent.script = backup(FIRST, TWO)
    full = await hub.run()
    assert full.state == pb.JOB_STATE_SUCCEEDED, full.failure
    hub.agent.script = backup(THEN, plan_of(incremental(2000), incremental(2001)))
    second = await hub.run()
    assert second.state == pb.JOB_STATE_SUCCEEDED, second.failure
    assert [(disk.key, disk.change_id) for disk in hub.agent.starts[-1].previous_disks] == [
        (2000, "52 aa/2000"),
        (2001, "52 aa/2001"),
    ]
    newest, oldest = await hub.points()
    assert (newest.point_id, newest.kind) == (second.point_id, "incremental")
    assert (oldest.point_id, oldest.kind) == (full.point_id, "full")
    assert oldest.dependant_point_ids == [newest.point_id]
    assert await digests(hub, oldest.point_id) == {2000: sha256(FIRST[2000]), 2001: sha256(FIRST[2001])}
    assert await digests(hub, newest.point_id) == {
        2000: sha256(FIRST[2000], THEN[2000]),
        2001: sha256(FIRST[2001]),
    }
    assert qemu_nbd_of(hub.world.paths.exports_dir) == []
    job = hub.agent.job
    assert job.acked == job.events[-1].seq
    assert [export.write_zeroes for export in (await job.hear("exports")).exports] == [True, True]


async def test_a_clock_that_was_set_back_a_day_does_not_hide_the_newest_point(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    clock = times.now_us()
    monkeypatch.setattr(point_record, "now_us", lambda: clock)
    hub.agent.script = backup(FIRST, TWO)
    await hub.run()
    clock -= 24 * 3600 * 1_000_000
    for number in range(2):
        hub.agent.script = backup(THEN, plan_of(incremental(2000), incremental(2001)))
        job = await hub.run()
        assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
        points = await hub.points()
        assert points[0].point_id == job.point_id, "the newest is listed first"
        parents = {disk.parent_point_id for disk in points[0].disks}
        assert parents == {points[1].point_id}, f"backup {number + 2} is built on the one before"


async def test_ff12_counters_and_disks_are_shown_as_they_were_said(hub: Hub):
    hub.agent.script = backup(FIRST, TWO)
    job = await hub.run()
    assert [(disk.key, disk.state, disk.copied_bytes, disk.read_bytes) for disk in job.disks] == [
        (2000, pb.DISK_STATE_COPIED, 2 * MIB + 512, MIB),
        (2001, pb.DISK_STATE_COPIED, 4096, MIB),
    ]
    assert job.phase == pb.JOB_PHASE_DONE
    assert job.quiesce_result == "quiesced"
    assert job.end_time.ToMicroseconds() >= job.start_time.ToMicroseconds() > 0


async def test_rule_20_a_second_full_has_no_parent_and_is_told_no_change_ids(hub: Hub):
    hub.agent.script = backup(FIRST, TWO)
    await hub.run()
    second = await hub.run(pb.BACKUP_MODE_FULL)
    assert second.state == pb.JOB_STATE_SUCCEEDED, second.failure
    assert list(hub.agent.starts[-1].previous_disks) == []
    assert [disk.mode_reason for disk in second.disks] == ["requested", "requested"]
    assert [point.kind for point in await hub.points()] == ["full", "full"]


async def test_ff30_an_incremental_without_changes_stores_next_to_nothing(hub: Hub):
    hub.agent.script = backup(FIRST, TWO)
    await hub.run()
    unchanged = [
        agent.PlannedDisk.FromString(disk.SerializeToString())
        for disk in (incremental(2000), incremental(2001))
    ]
    for disk in unchanged:
        disk.planned_read_bytes = disk.changed_bytes = 0
    hub.agent.script = backup({}, plan_of(*unchanged))
    job = await hub.run(pb.BACKUP_MODE_INCREMENTAL)
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    newest = (await hub.points())[0]
    assert sum(disk.copied_bytes for disk in newest.disks) == 0
    assert max(disk.stored_bytes for disk in newest.disks) < MIB


async def test_rule_04_the_change_id_is_known_only_with_the_complete_point(hub: Hub):
    seen: list[object] = []

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000])
        rows = await hub.rows()
        seen.extend([len(rows), [disk.change_id for disk in rows[0].disks], (await hub.points())])
        await job.finish()

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert seen == [1, [""], []]
    (point,) = await hub.points()
    assert [disk.change_id for disk in point.disks] == ["52 aa/2000"]


async def test_the_document_holds_all_that_a_restore_needs(hub: Hub):
    skipped = agent.SkippedDisk(key=2001, label="Hard disk 2", reason="independent", capacity_bytes=512)
    hub.agent.script = backup(FIRST, plan_of(planned(), skipped_disks=[skipped]))
    job = await hub.run()
    assert [disk.state for disk in job.disks] == [pb.DISK_STATE_COPIED, pb.DISK_STATE_SKIPPED]
    (point,) = await hub.points()
    text = json.loads((hub.repository.root / point.directory / "point.json").read_text())
    assert text["vm_config"] == {"name": "web"}
    assert text["unprotected_disks"] == ["Hard disk 2: independent"] == list(point.unprotected_disks)
    assert text["disks"][0]["ledger_bytes"] > 0
    assert text["hub_id"] == hub.catalog.hub_id


async def fails(hub: Hub, reason: Reason.ValueType) -> pb.Job:
    """A job fails for this reason and leaves nothing."""
    job = await hub.run()
    assert job.state == pb.JOB_STATE_FAILED
    assert job.failure.reason == reason, job.failure
    await hub.assert_nothing_left()
    return job


async def test_ff08_a_failure_before_the_plan_allocates_nothing(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await job.fail(Reason.REASON_VCENTER_LOGIN_FAILED, message="InvalidLogin")

    hub.agent.script = script
    job = await fails(hub, Reason.REASON_VCENTER_LOGIN_FAILED)
    assert job.failure.message == "InvalidLogin"
    assert job.failure.metadata["vm"] == "web"
    assert job.failure.metadata["vcenter"] == "vc"
    assert len(hub.agent.starts) == 1, "a refused password is never tried again"
    assert hub.agent.cleaned == []
    assert hub.agent.job.acked == 2


@pytest.mark.parametrize("snapshot_left", [False, True])
async def test_ff08_a_failure_in_the_copy_leaves_nothing(hub: Hub, snapshot_left: bool):
    async def script(job: ScriptedJob) -> None:
        exports = await job.snapshot_and_plan(TWO)
        await job.copy(exports[0], FIRST[2000])
        assert len(qemu_nbd_of(job.exports_dir)) == 2
        await job.fail(Reason.REASON_SOURCE_READ_FAILED, snapshot_left=snapshot_left)

    hub.agent.script = script
    job = await fails(hub, Reason.REASON_SOURCE_READ_FAILED)
    assert job.ended_in_phase == pb.JOB_PHASE_LAYERS
    assert hub.agent.cleaned == ([job.job_id] if snapshot_left else [])


async def test_a_snapshot_that_could_not_be_removed_is_said_and_remembered(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        await job.fail(Reason.REASON_SOURCE_READ_FAILED, snapshot_left=True)

    hub.agent.script, hub.agent.cleans = script, False
    job = await fails(hub, Reason.REASON_SOURCE_READ_FAILED)
    assert [warning.code for warning in job.warnings] == ["snapshot_left"]
    hub.agent.script, hub.agent.cleans = backup(FIRST), True
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED
    assert [each.job_id for each in hub.agent.starts[-1].dead_snapshots] == [job.job_id]
    assert (await hub.run(pb.BACKUP_MODE_FULL)).state == pb.JOB_STATE_SUCCEEDED
    assert list(hub.agent.starts[-1].dead_snapshots) == []


async def test_ff10_one_finished_disk_does_not_complete_the_job(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        exports = await job.snapshot_and_plan(TWO)
        await job.copy(exports[0], FIRST[2000])
        await job.copy(exports[1], FIRST[2001], done=False)
        await job.say(copied=agent.DisksCopied())

    hub.agent.script = script
    job = await fails(hub, Reason.REASON_INTERNAL)
    assert "2001" in job.failure.message
    assert hub.agent.job.count("cancel") == 1


async def test_ff11_a_disk_that_was_not_read_to_its_end_does_not_count_as_copied(hub: Hub):
    hub.agent.script = backup(FIRST, plan_of(planned(planned_read_bytes=MIB + 1)))
    job = await fails(hub, Reason.REASON_INTERNAL)
    assert f"{MIB} of {MIB + 1}" in job.failure.message


async def test_copied_without_a_plan_is_refused(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.say(copied=agent.DisksCopied())

    hub.agent.script = script
    await fails(hub, Reason.REASON_INTERNAL)


async def test_done_before_the_point_is_complete_is_a_failure(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000])
        await job.say(done=agent.BackupDone(snapshot_removed=True))

    hub.agent.script = script
    await fails(hub, Reason.REASON_INTERNAL)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (plan_of(planned(capacity_bytes=CAPACITY + 1)), Reason.REASON_DISK_MISMATCH),
        (plan_of(planned(capacity_bytes=-512)), Reason.REASON_DISK_MISMATCH),
        (plan_of(planned(planned_read_bytes=-(2**40))), Reason.REASON_DISK_MISMATCH),
        (plan_of(planned(mode=7)), Reason.REASON_DISK_MISMATCH),
        (plan_of(planned(2000), planned(2000, disk_object_id="x")), Reason.REASON_DISK_MISMATCH),
        (plan_of(planned(2000), planned(2001, disk_object_id="1-2000")), Reason.REASON_DISK_MISMATCH),
        (plan_of(planned(), skipped_disks=[agent.SkippedDisk(key=2000)]), Reason.REASON_DISK_MISMATCH),
        (plan_of(vm_instance_uuid="another"), Reason.REASON_DISK_MISMATCH),
        (plan_of(vm_config_json=b"{"), Reason.REASON_DISK_MISMATCH),
        (plan_of(incremental()), Reason.REASON_DISK_MISMATCH),
        (plan_of(vcenter_uuid="../../etc"), Reason.REASON_INVALID_REQUEST),
        (plan_of(planned(planned_read_bytes=2**60)), Reason.REASON_REPOSITORY_FULL),
    ],
)
async def test_a_plan_that_cannot_be_right_makes_no_file(
    hub: Hub, plan: agent.BackupPlan, reason: Reason.ValueType
):
    hub.agent.script = backup(FIRST, plan)
    await fails(hub, reason)
    assert hub.agent.job.count("exports") == 0
    assert hub.agent.job.count("cancel") == 1


async def test_a_second_plan_unlike_the_first_is_refused(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        await job.say(plan=plan_of(vm_name="other"))

    hub.agent.script = script
    await fails(hub, Reason.REASON_INTERNAL)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (checkpoint(4711, [Record(0, 512, b"")]), Reason.REASON_INTERNAL),
        (checkpoint(2000, [Record(CAPACITY, 512, b"")]), Reason.REASON_INVALID_REQUEST),
        (checkpoint(2000, [Record(MIB - 512, 1024, b"d" * 32)]), Reason.REASON_INVALID_REQUEST),
    ],
)
async def test_a_checkpoint_of_what_was_not_planned_is_refused(
    hub: Hub, said: agent.Checkpoint, reason: Reason.ValueType
):
    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        await job.say(checkpoint=said)

    hub.agent.script = script
    await fails(hub, reason)


async def test_an_event_that_went_missing_ends_the_job(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000], done=False)
        await job.say(seq=9, warning=agent.Warning(code="x"))

    hub.agent.script = script
    job = await fails(hub, Reason.REASON_INTERNAL)
    assert "missing" in job.failure.message


async def test_rule_23_a_failed_run_shadows_no_good_point(hub: Hub):
    hub.agent.script = backup(FIRST, TWO)
    good = await hub.run()

    async def script(job: ScriptedJob) -> None:
        exports = await job.snapshot_and_plan(plan_of(incremental(2000), incremental(2001)))
        await job.copy(exports[0], THEN[2000])
        await job.fail(Reason.REASON_SNAPSHOT_LOST)

    hub.agent.script = script
    assert (await hub.run()).state == pb.JOB_STATE_FAILED
    (point,) = await hub.points()
    assert [row.point_id for row in await hub.rows()] == [good.point_id]
    assert point.point_id == good.point_id
    assert point.dependant_point_ids == []
    assert await digests(hub, point.point_id) == {2000: sha256(FIRST[2000]), 2001: sha256(FIRST[2001])}
    assert len(list(hub.repository.directories())) == 1
    hub.agent.script = backup(THEN, plan_of(incremental(2000), incremental(2001)))
    await hub.run()
    assert [disk.change_id for disk in hub.agent.starts[-1].previous_disks] == ["52 aa/2000", "52 aa/2001"]


async def test_ff28_a_damaged_chain_is_not_built_upon_and_the_job_says_why(hub: Hub):
    hub.agent.script = backup(FIRST, TWO)
    first = await hub.run()
    (point,) = await hub.points()
    (hub.repository.root / point.directory / "disk-2000.qcow2").unlink()
    hub.agent.script = backup(FIRST, plan_of(planned(2000), incremental(2001)))
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert [disk.key for disk in hub.agent.starts[-1].previous_disks] == [2001]
    assert [(each.code, each.disk_key) for each in job.warnings] == [("chain_unusable", 2000)]
    assert first.point_id in job.warnings[0].message


async def test_a_point_that_a_backup_builds_on_cannot_be_deleted_meanwhile(hub: Hub):
    hub.agent.script = backup(FIRST)
    first = await hub.run()
    busy: list[SendenseError] = []

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of(incremental()))
        try:
            with hub.workshop.locks.deleting(first.point_id):
                pass
        except SendenseError as error:
            busy.append(error)
        await job.copy(export, {})
        await job.finish()

    hub.agent.script = script
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED
    assert [error.reason for error in busy] == [Reason.REASON_POINT_BUSY]
    with hub.workshop.locks.deleting(first.point_id):
        pass


async def test_ff14_two_vms_of_one_name_do_not_touch_each_other(hub: Hub):
    other = "5029aa00-0000-4000-8000-00000000000f"
    waiting = asyncio.Event()

    async def script(job: ScriptedJob) -> None:
        machine = job.start.vm_instance_uuid
        (export,) = await job.snapshot_and_plan(plan_of(vm_instance_uuid=machine))
        await job.copy(export, FIRST[2000])
        if machine == other:
            waiting.set()
            await job.fail(Reason.REASON_SOURCE_READ_FAILED, snapshot_left=True)
        else:
            await waiting.wait()
            await job.finish()

    hub.agent.script = script
    good, bad = await asyncio.gather(hub.run(), hub.run(vm_instance_uuid=other))
    assert good.state == pb.JOB_STATE_SUCCEEDED, good.failure
    assert bad.state == pb.JOB_STATE_FAILED
    assert hub.agent.cleaned == [bad.job_id]
    (point,) = await hub.points()
    assert await digests(hub, point.point_id) == {2000: sha256(FIRST[2000])}
    assert len(files_of(hub.repository)) == 1
