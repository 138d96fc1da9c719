# SPDX-License-Identifier: Apache-2.0
"""Attempts that are interrupted, and those that go on: nothing is copied twice, nothing is missing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import LIMITS, WITHIN_S
from tests.integration.agent.resuming_kit import Job
from tests.integration.agent.site_kit import MIB, Backup, Site, children, processes_of, running_site
from tests.integration.credentials.kit import Service
from tests.integration.datapath.kit import as_raw
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.mover.comparing import RECORD
from sendense_agent.domain.checkpoints import Checkpoints
from sendense_common.keys import AgentKeys, ensure_agent_keys
from sendense_lab.client import LabClient, LabMachine

pytestmark = pytest.mark.integration

SIZES = [12 * MIB, 3 * MIB + 512]
OFTEN = Checkpoints(bytes=MIB, seconds=0.2)


def noise(seed: str, length: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(length)


@pytest.fixture
async def site(short_tmp: Path, credentials: Service, lab: LabClient) -> AsyncIterator[Site]:
    async with running_site(short_tmp, credentials, lab, LIMITS, OFTEN) as serving:
        yield serving


async def machine(site: Site) -> LabMachine:
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", SIZES)
    await site.lab.guest_write(vm.name, vm.disks[0], 0, noise("a", 10 * MIB))
    await site.lab.guest_write(vm.name, vm.disks[1], SIZES[1] - 512, noise("b", 512))
    return vm


async def guest(site: Site, vm: LabMachine) -> dict[int, bytes]:
    return {
        key: await site.lab.guest_read(vm.name, key, 0, size)
        for key, size in zip(vm.disks, SIZES, strict=True)
    }


@contextlib.asynccontextmanager
async def half_copied(
    job: Job, backup: Backup, parents: dict[int, Path] | None = None
) -> AsyncIterator[None]:
    """In the middle of the first disk's copy; what was heard is stored afterwards."""
    plan = await backup.until_plan()
    await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=3 * MIB))
    async with job.exports(backup, plan, parents or {}):
        read = 0

        def enough(event: pb.RunBackupResponse) -> bool:
            nonlocal read
            read += sum(each.length_bytes for each in event.checkpoint.records)
            return read >= 3 * MIB

        await backup.until(enough)
        await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=1))
        yield
    job.take(backup)


async def test_ff29_a_copy_whose_mover_was_killed_goes_on_where_it_was(site: Site):
    vm = await machine(site)
    expected = await guest(site, vm)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        os.kill(children(site, "mover")[0], signal.SIGKILL)
        assert (await first.interrupted()).reason == Reason.REASON_COPY_PROCESS_DIED
    await site.lab.guest_write(vm.name, vm.disks[0], 0, noise("later", MIB))  # is not of this moment
    stored = sum(record.length_bytes for _, record in job.disks[vm.disks[0]].records)
    assert stored >= 3 * MIB
    second = await job.begin()
    assert (await first.failed()).failure.reason == Reason.REASON_ATTEMPT_FENCED
    plan = await job.to_the_end(second)
    assert all(disk.keeps_layer for disk in plan.disks)
    assert plan.quiesce_result == "not_requested"
    assert job.to_read[1][vm.disks[0]] == 10 * MIB - stored
    await job.check(expected)
    counters = await site.counters()
    assert (counters["call CreateSnapshot_Task"], counters["call RemoveSnapshot_Task"]) == (1, 1)
    await site.nothing_left(vm)


async def test_a_snapshot_that_is_gone_is_replaced_and_what_changed_is_copied_again(site: Site):
    vm = await machine(site)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        os.kill(first.worker_pid, signal.SIGKILL)
        await first.interrupted()
    await site.lab.command("remove_snapshots", vm=vm.name)
    disk = vm.disks[0]
    await site.lab.guest_write(vm.name, disk, MIB + 512, noise("new", 512))
    await site.lab.command("guest_trim", vm=vm.name, disk=disk, offset_bytes=9 * MIB, length_bytes=MIB)
    await site.lab.guest_write(vm.name, disk, 11 * MIB, noise("more", 512))
    expected = await guest(site, vm)
    second = await job.begin()
    plan = await job.to_the_end(second)
    assert all(each.keeps_layer for each in plan.disks)
    assert [each.warning.code for each in second.heard if each.HasField("warning")] == ["snapshot_replaced"]
    assert 0 < job.to_read[1][disk] < 10 * MIB
    await job.check(expected)
    await site.nothing_left(vm, sessions=1)


async def test_interrupted_twice_an_incremental_over_three_snapshots_is_the_last_ones_disk(site: Site):
    vm = await machine(site)
    full = Job(site, vm)
    previous = await full.to_the_end(await full.begin())
    before = await guest(site, vm)
    parents = {key: layer.file for key, layer in full.disks.items()}
    known = [
        pb.PreviousDisk(
            key=disk.key,
            disk_object_id=disk.disk_object_id,
            backing_uuid=disk.backing_uuid,
            capacity_bytes=disk.capacity_bytes,
            change_id=disk.change_id,
        )
        for disk in previous.disks
    ]
    job, disk = Job(site, vm, previous_disks=known), vm.disks[0]
    for round_ in range(3):
        await site.lab.guest_write(vm.name, disk, (2 + round_) * MIB, noise(f"r{round_}", 5 * MIB))
        await site.lab.guest_zero(vm.name, disk, round_ * MIB, MIB)
        await site.lab.command("remove_snapshots", vm=vm.name)
        backup = await job.begin()
        if round_ < 2:
            async with half_copied(job, backup, parents):
                os.kill(children(site, "mover")[0], signal.SIGKILL)
                await backup.interrupted()
        else:
            plan = await job.to_the_end(backup, parents)
    assert [each.mode for each in plan.disks] == [pb.DISK_MODE_INCREMENTAL] * 2
    assert all(each.keeps_layer for each in plan.disks)
    assert len(job.disks[disk].eras) == 3
    await job.check(await guest(site, vm), before)
    await site.nothing_left(vm)


async def test_rule_27_a_mismatch_that_was_written_and_not_heard_of_is_found_again_and_gets_its_record(
    site: Site,
):
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [8 * MIB])
    (disk,) = vm.disks
    await site.lab.guest_write(vm.name, disk, 0, noise("a", 4 * MIB))
    await site.lab.guest_write(vm.name, disk, 6 * MIB, noise("b", 512))
    full = Job(site, vm)
    (planned,) = (await full.to_the_end(await full.begin())).disks
    before = await site.lab.guest_read(vm.name, disk, 0, 8 * MIB)
    known = pb.PreviousDisk(
        key=disk,
        disk_object_id=planned.disk_object_id,
        backing_uuid=planned.backing_uuid,
        capacity_bytes=planned.capacity_bytes,
        change_id=planned.change_id,
    )
    place = 3 * MIB
    digest = hashlib.sha256(before[place : place + MIB]).digest()
    audit = pb.AuditSample(disk_key=disk, records=RECORD.pack(place, MIB, 1, digest))
    parents, job = {disk: full.disks[disk].file}, Job(site, vm, previous_disks=[known])
    await site.lab.command("set", areas_left_out=1)  # the last change, and the last area that is in use
    try:
        await site.lab.guest_write(vm.name, disk, 512, noise("told", 512))
        await site.lab.guest_write(vm.name, disk, place + 512, noise("hidden", 512))
        content = await site.lab.guest_read(vm.name, disk, 0, 8 * MIB)
        first = await job.begin()
        await first.stream.tell(audit=audit)
        plan = await first.until_plan()
        async with job.exports(first, plan, parents):
            await first.until(lambda event: event.HasField("copied"))
        assert any(event.HasField("audit_mismatch") for event in first.heard)
        assert await as_raw(job.disks[disk].file) == content
        assert job.disks[disk].records == [], "its events got lost on the way to the hub"

        second = await job.begin()
        await second.stream.tell(audit=audit)
        plan = await job.to_the_end(second, parents)
        assert [(each.mode, each.keeps_layer) for each in plan.disks] == [(pb.DISK_MODE_INCREMENTAL, True)]
    finally:
        await site.lab.command("set", areas_left_out=0)
    heard = [event.audit_mismatch for event in second.heard if event.HasField("audit_mismatch")]
    assert [list(each.extents_bytes) for each in heard] == [[place, MIB]]
    assert job.to_read == [{disk: 64 * 1024}]
    await job.check({disk: content}, {disk: before})
    await site.nothing_left(vm)


async def test_a_disk_without_a_usable_change_id_begins_anew_and_the_other_goes_on(site: Site):
    vm = await machine(site)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        os.kill(children(site, "mover")[0], signal.SIGKILL)
        await first.interrupted()
    await site.lab.command("remove_snapshots", vm=vm.name)
    await site.lab.command("reset_tracking", vm=vm.name, disk=vm.disks[0])
    plan = await job.to_the_end(await job.begin())
    assert [each.keeps_layer for each in plan.disks] == [False, True]
    assert job.to_read[1][vm.disks[0]] == 10 * MIB
    await job.check(await guest(site, vm))
    await site.nothing_left(vm)


async def test_an_agent_that_is_stopped_keeps_what_was_copied_to_the_last_byte(site: Site):
    vm = await machine(site)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        stopping = asyncio.create_task(site.agent.jobs.stop())
        assert (await first.interrupted()).reason == Reason.REASON_SERVICE_STOPPING
        await asyncio.wait_for(stopping, WITHIN_S)
        await until(lambda: not processes_of(site.paths.run), "no process is left", WITHIN_S)
    progress = [each.progress for each in first.heard if each.HasField("progress")]
    read = sum(disk.read_bytes for disk in progress[-1].disks)
    stored = sum(each.length_bytes for layer in job.disks.values() for _, each in layer.records)
    assert (
        stored >= read
    )  # what was read after the last checkpoint was flushed too; counters come now and then
    assert len(await site.snapshots(vm)) == 1
    assert (await site.counters())["sessions"] == 0


@pytest.mark.parametrize("who", ["worker", "mover"])
async def test_a_process_that_is_stopped_is_killed_when_a_higher_attempt_comes(
    site: Site, who: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sendense_agent.control.job._GIVE_WAY_WITHIN_S", 1.0)
    vm = await machine(site)
    expected = await guest(site, vm)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        movers = children(site, "mover")
        stopped = first.worker_pid if who == "worker" else movers[0]
        os.kill(stopped, signal.SIGSTOP)
        second = await job.begin()
        failed = await first.failed()
        await until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in (stopped, *movers)),
            "the old worker and its movers are gone",
            WITHIN_S,
        )
    assert failed.failure.reason == Reason.REASON_ATTEMPT_FENCED
    assert failed.snapshot_left
    await job.to_the_end(second)
    await job.check(expected)
    assert (await site.counters())["call CreateSnapshot_Task"] == 1
    assert await site.snapshots(vm) == []


async def test_a_vcenter_that_is_away_when_the_next_attempt_comes_costs_nothing_but_that_attempt(site: Site):
    vm = await machine(site)
    expected = await guest(site, vm)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        os.kill(children(site, "mover")[0], signal.SIGKILL)
        await first.interrupted()
    access = await site.access(port=1)
    second = await job.begin(vcenter=access)
    assert (await second.interrupted()).reason == Reason.REASON_VCENTER_UNREACHABLE
    assert len(await site.snapshots(vm)) == 1
    await job.to_the_end(await job.begin())
    await job.check(expected)
    assert (await site.counters())["call CreateSnapshot_Task"] == 1
    await site.nothing_left(vm)


async def test_new_keys_that_the_agent_has_not_taken_up_when_the_next_attempt_comes_cost_only_that_attempt(
    site: Site,
):
    vm = await machine(site)
    expected = await guest(site, vm)
    job = Job(site, vm)
    first = await job.begin()
    async with half_copied(job, first):
        os.kill(children(site, "mover")[0], signal.SIGKILL)
        await first.interrupted()
    own = ensure_agent_keys(site.paths.lease_keys_file)
    await site.credentials.register(site.name, AgentKeys.generate(), replace=True)
    second = await job.begin()
    assert (await second.interrupted()).reason == Reason.REASON_AGENT_KEYS_REPLACED
    assert len(await site.snapshots(vm)) == 1
    await site.credentials.register(site.name, own, replace=True)
    await job.to_the_end(await job.begin())
    await job.check(expected)
    assert (await site.counters())["call CreateSnapshot_Task"] == 1
    await site.nothing_left(vm)


async def test_a_cancel_that_leaves_the_snapshot_leaves_nothing_else(site: Site):
    vm = await machine(site)
    job = Job(site, vm)
    backup = await job.begin()
    async with half_copied(job, backup):
        await backup.stream.tell(cancel=pb.CancelBackup(cause="the hub is drained", keep_snapshot=True))
        failure = await backup.interrupted()
        assert "the hub is drained" in failure.message
        await until(lambda: not processes_of(site.paths.run), "no process is left", WITHIN_S)
    assert len(await site.snapshots(vm)) == 1
    assert (await site.counters())["sessions"] == 0
