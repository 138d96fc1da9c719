# SPDX-License-Identifier: Apache-2.0
"""Real workers against the simulated vCenter: what they do, and that nothing stays however they end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import uuid

import pytest
from tests.integration.agent.kit import WITHIN_S
from tests.integration.agent.site_kit import MIB, Backup, Site, children, processes_of
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_lab.client import LabMachine

pytestmark = pytest.mark.integration

SIZES = [4 * MIB, 3 * MIB + 512]


def noise(seed: str, length: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(length)


async def machine(site: Site) -> LabMachine:
    """A VM with two disks and some data."""
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", SIZES)
    await site.lab.guest_write(vm.name, vm.disks[0], 0, noise("a", MIB + 512))
    await site.lab.guest_write(vm.name, vm.disks[1], SIZES[1] - 512, noise("b", 512))
    return vm


async def guest(site: Site, vm: LabMachine) -> dict[int, bytes]:
    """What the guest sees of each disk."""
    return {
        key: await site.lab.guest_read(vm.name, key, 0, size)
        for key, size in zip(vm.disks, SIZES, strict=True)
    }


async def test_a_full_and_an_incremental_hold_what_the_guest_had(site: Site):
    vm = await machine(site)
    full = await site.begin(vm)
    plan, events = await full.to_the_end()
    assert [disk.mode for disk in plan.disks] == [pb.DISK_MODE_FULL] * 2
    assert await full.stored() == await guest(site, vm)
    phases = [event.phase.phase for event in events if event.HasField("phase")]
    assert phases == list(range(pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_REMOVE_SNAPSHOT + 1))
    assert events[-1].done.snapshot_removed
    numbered = [event.seq for event in events if event.seq]
    assert numbered == list(range(1, len(numbered) + 1))
    assert [event.seq for event in events if event.HasField("progress")] != []
    await site.nothing_left(vm)

    await site.lab.guest_write(vm.name, vm.disks[0], 2 * MIB, noise("c", 4096))
    await site.lab.guest_zero(vm.name, vm.disks[0], 0, MIB)
    previous = [
        pb.PreviousDisk(
            key=disk.key,
            disk_object_id=disk.disk_object_id,
            backing_uuid=disk.backing_uuid,
            capacity_bytes=disk.capacity_bytes,
            change_id=disk.change_id,
        )
        for disk in plan.disks
    ]
    incremental = await site.begin(vm, previous_disks=previous, require_incremental=True)
    plan, events = await incremental.to_the_end()
    assert [disk.mode for disk in plan.disks] == [pb.DISK_MODE_INCREMENTAL] * 2
    assert plan.disks[1].planned_read_bytes == 0
    assert await incremental.stored() == await guest(site, vm)
    assert events[-1].done.snapshot_removed
    await site.nothing_left(vm)


async def test_ff08_a_wrong_password_fails_at_once_after_one_login_and_leaves_nothing(site: Site):
    vm = await machine(site)
    backup = await site.begin(vm, vcenter=await site.access(password="wrong"))
    failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert not failed.failure.retryable
    assert not failed.snapshot_left
    assert failed.failure.metadata["fault"].endswith("InvalidLogin")
    counters = await site.counters()
    assert (counters["logins"], counters["logins refused"]) == (1, 1)
    assert counters.get("call CreateSnapshot_Task", 0) == 0
    await site.nothing_left(vm)


async def test_a_lease_opens_once(site: Site):
    vm = await machine(site)
    access = await site.access()
    first = await site.begin(vm, vcenter=access)
    await first.until_plan()
    await first.cancel()
    await first.failed()
    second = await site.begin(vm, vcenter=access)
    assert (await second.failed()).failure.reason == Reason.REASON_LEASE_USED
    assert (await site.counters())["logins"] == 1


async def held(site: Site, vm: LabMachine, phase: pb.AgentPhase.ValueType) -> Backup:
    """A backup that stays in one of the phases before the copy."""
    match phase:
        case pb.AGENT_PHASE_LOGIN:
            site.paths.credentials_socket.unlink()
            silent = await asyncio.start_unix_server(_silent, str(site.paths.credentials_socket))
            backup = await site.begin(vm)
            await backup.until_phase(phase)
            silent.close()
        case pb.AGENT_PHASE_PREFLIGHT:
            await site.lab.command("delay_task", method="ReconfigVM_Task", seconds=0.7)
            backup = await site.begin(vm)
            await site.called("ReconfigVM_Task")
        case pb.AGENT_PHASE_SNAPSHOT:
            await site.lab.command("delay_task", method="CreateSnapshot_Task", seconds=0.7)
            backup = await site.begin(vm)
            await site.called("CreateSnapshot_Task")
            assert await site.snapshots(vm) == []
        case _:
            backup = await site.begin(vm)
            await backup.until_plan()
            assert len(await site.snapshots(vm)) == 1
    return backup


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


BEFORE_COPY = [pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT, pb.AGENT_PHASE_SNAPSHOT, pb.AGENT_PHASE_PLAN]
NAMES = [pb.AgentPhase.Name(phase).removeprefix("AGENT_PHASE_").lower() for phase in BEFORE_COPY]


@pytest.mark.parametrize("how", ["cancel", "SIGTERM"])
@pytest.mark.parametrize("phase", BEFORE_COPY, ids=NAMES)
async def test_ff27_ended_in_any_phase_before_the_copy_it_leaves_no_snapshot(
    site: Site, phase: pb.AgentPhase.ValueType, how: str
):
    """Also while vSphere is still making it: the worker waits for it and removes it."""
    vm = await machine(site)
    backup = await held(site, vm, phase)
    if how == "cancel":
        await backup.cancel()
    else:
        os.kill(backup.worker_pid, signal.SIGTERM)
    failed = await backup.failed()
    expected = Reason.REASON_CANCELLED if how == "cancel" else Reason.REASON_SERVICE_STOPPING
    assert failed.failure.reason == expected
    assert not failed.snapshot_left
    await site.nothing_left(vm)
    counters = await site.counters()
    # Both, for a snapshot that is made later than we look would not be seen.
    for call in ("CreateSnapshot_Task", "RemoveSnapshot_Task"):
        assert counters.get(f"call {call}", 0) == int(phase >= pb.AGENT_PHASE_SNAPSHOT), call


async def test_ff27_the_snapshot_of_a_killed_worker_is_removed_by_the_clean_up(site: Site):
    vm = await machine(site)
    backup = await held(site, vm, pb.AGENT_PHASE_PLAN)
    os.kill(backup.worker_pid, signal.SIGKILL)
    failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_COPY_PROCESS_DIED
    assert failed.snapshot_left
    await site.lab.command("take_snapshot", vm=vm.name, name="an administrator's")
    assert len(await site.snapshots(vm)) == 2
    dead = pb.JobSnapshot(job_id=backup.start.job_id, vm_instance_uuid=vm.instance_uuid)
    gone = pb.JobSnapshot(job_id="another", vm_instance_uuid="no such VM")
    request = agent_service_pb2.CleanUpSnapshotsRequest(
        vcenter=await site.access(Operation.OPERATION_CLEAN_UP), hub_id="hub-1", snapshots=[dead, gone]
    )
    answer = await site.stub.CleanUpSnapshots(request, timeout=WITHIN_S)
    assert sorted(answer.cleaned_job_ids) == sorted([backup.start.job_id, "another"])
    assert await site.snapshots(vm) == [""]  # the administrator's stays


async def test_dead_snapshots_go_before_the_new_one_is_made(site: Site):
    vm = await machine(site)
    killed = await held(site, vm, pb.AGENT_PHASE_PLAN)
    os.kill(killed.worker_pid, signal.SIGKILL)
    await killed.failed()
    dead = pb.JobSnapshot(job_id=killed.start.job_id, vm_instance_uuid=vm.instance_uuid)
    backup = await site.begin(vm, dead_snapshots=[dead])
    await backup.until_plan()
    (description,) = await site.snapshots(vm)
    assert backup.start.job_id in description
    await backup.cancel()
    await backup.failed()
    assert await site.snapshots(vm) == []


@pytest.mark.parametrize("written", [True, False], ids=["at a checkpoint", "after a copy of nothing"])
async def test_rule_10_a_snapshot_that_an_administrator_removed_is_missed_before_the_point_is_complete(
    site: Site, written: bool
):
    vm = await machine(site) if written else await site.lab.add_vm(f"empty-{uuid.uuid4().hex[:8]}", SIZES)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    await site.lab.command("remove_snapshots", vm=vm.name)
    async with backup.exports(plan):
        failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_SNAPSHOT_LOST
    assert not failed.snapshot_left
    assert not any(event.HasField("copied") or event.HasField("checkpoint") for event in backup.heard)
    copied_count = sum(event.HasField("disk_done") for event in backup.heard)
    assert copied_count == (0 if written else 2)
    await site.nothing_left(vm)


async def test_rule_10_a_snapshot_that_is_being_removed_when_all_is_copied_is_no_snapshot_any_more(
    site: Site,
):
    vm = await machine(site)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    await site.lab.command("delay_task", method="RemoveSnapshot_Task", seconds=600)
    await site.lab.command("remove_snapshots", vm=vm.name, by_task=True)
    async with backup.exports(plan):
        await backup.until_phase(pb.AGENT_PHASE_CONFIRM)  # it is still in the tree
        await site.lab.command("delay_task", method="RemoveSnapshot_Task", seconds=0)
        failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_SNAPSHOT_LOST
    assert not any(event.HasField("copied") for event in backup.heard)
    await site.nothing_left(vm)


async def test_a_snapshot_that_cannot_be_removed_is_a_warning_after_the_commit(site: Site):
    vm = await machine(site)
    await site.lab.inject_fault("RemoveSnapshot_Task", "vim.fault.NoPermission", message="not yours")
    backup = await site.begin(vm)
    _, events = await backup.to_the_end()
    assert events[-1].HasField("done")
    assert not events[-1].done.snapshot_removed
    (warned,) = [event.warning for event in events if event.warning.code == "snapshot_not_removed"]
    assert "not yours" in warned.message
    assert len(await site.snapshots(vm)) == 1


async def test_a_snapshot_that_cannot_be_removed_is_told_with_the_failure(site: Site):
    vm = await machine(site)
    await site.lab.inject_fault("RemoveSnapshot_Task", "vim.fault.NoPermission")
    backup = await held(site, vm, pb.AGENT_PHASE_PLAN)
    await backup.cancel()
    failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_CANCELLED
    assert failed.snapshot_left
    assert len(await site.snapshots(vm)) == 1


async def test_an_incremental_that_is_demanded_and_not_possible_copies_nothing(site: Site):
    vm = await machine(site)
    backup = await site.begin(vm, require_incremental=True)
    failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_INCREMENTAL_NOT_POSSIBLE
    assert "first_backup" in failed.failure.metadata["why"]
    assert not failed.snapshot_left
    await site.nothing_left(vm)


async def test_a_vm_that_is_gone_fails_by_its_name(site: Site):
    vm = await machine(site)
    backup = await site.begin(vm, vm_instance_uuid="50000000-0000-0000-0000-00000000dead")
    failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_VM_NOT_FOUND
    assert vm.name in failed.failure.message
    await site.nothing_left(vm)


@pytest.mark.parametrize("wrong", ["size", "name", "missing", "twice", "unknown"])
async def test_rule_15_exports_that_do_not_fit_the_plan_fail_before_the_first_byte(site: Site, wrong: str):
    vm = await machine(site)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    outside = site.paths.run / "grpc.sock"
    outside.touch()
    async with backup.exports(plan, tell=False) as exports:
        match wrong:
            case "size":
                exports[0].capacity_bytes += 512
            case "name":
                exports[0].export_name = "../grpc"
            case "missing":
                exports.pop()
            case "twice":
                exports.append(exports[0])
            case "unknown":
                exports[0].disk_key = 4711
        await backup.stream.tell(exports=pb.OpenExports(exports=exports))
        failed = await backup.failed()
    expected = Reason.REASON_DISK_MISMATCH if wrong == "size" else Reason.REASON_INVALID_REQUEST
    assert failed.failure.reason == expected
    assert not any(event.HasField("checkpoint") for event in backup.heard)
    assert outside.exists()
    await site.nothing_left(vm)


@contextlib.asynccontextmanager
async def slow_copy(site: Site, vm: LabMachine):
    """A backup in the middle of its copy, where it stays."""
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=1))
    async with backup.exports(plan):
        await backup.until_phase(pb.AGENT_PHASE_COPY)
        await until(lambda: len(children(site, "mover")) == 2, "both movers run", WITHIN_S)
        for _ in range(4):  # it tells that it lives though not a byte is read
            await backup.until(lambda event: event.HasField("progress"))
        yield backup


async def test_cancelled_in_the_copy_it_leaves_nothing(site: Site):
    vm = await machine(site)
    async with slow_copy(site, vm) as backup:
        await backup.cancel()
        failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_CANCELLED
    assert not failed.snapshot_left
    await site.nothing_left(vm)


@pytest.mark.parametrize(
    ("program", "reason"),
    [("mover", Reason.REASON_COPY_PROCESS_DIED), ("nbdkit", Reason.REASON_SOURCE_READ_FAILED)],
)
async def test_ff09_a_process_of_the_copy_that_dies_interrupts_the_backup_and_ends_the_other_disk(
    site: Site, program: str, reason: Reason.ValueType
):
    vm = await machine(site)
    async with slow_copy(site, vm) as backup:
        os.kill(children(site, program)[0], signal.SIGKILL)
        failure = await backup.interrupted()
        assert failure.reason == reason
        assert failure.metadata["disk"] in {str(key) for key in vm.disks}
        assert not children(site, "mover")
        assert not children(site, "nbdkit")
        assert len(await site.snapshots(vm)) == 1
        await backup.cancel()
        assert not (await backup.failed()).snapshot_left
    await site.nothing_left(vm)


async def test_a_killed_worker_takes_its_children_with_it(site: Site):
    vm = await machine(site)
    async with slow_copy(site, vm) as backup:
        os.kill(backup.worker_pid, signal.SIGKILL)
        assert (await backup.interrupted()).reason == Reason.REASON_COPY_PROCESS_DIED
        await until(lambda: not processes_of(site.paths.run), "nbdkit and movers are gone", WITHIN_S)
        await backup.cancel()  # and nobody is there to remove the snapshot
        failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_CANCELLED
    assert failed.snapshot_left
    assert len(await site.snapshots(vm)) == 1


async def test_a_cancel_after_the_commit_changes_nothing(site: Site):
    vm = await machine(site)
    await site.lab.command("delay_task", method="RemoveSnapshot_Task", seconds=0.7)
    backup = await site.begin(vm)
    plan = await backup.until_plan()
    async with backup.exports(plan):
        await backup.until(lambda event: event.HasField("copied"))
    await backup.stream.tell(committed=pb.CommitPoint(point_id="p"))
    await backup.until_phase(pb.AGENT_PHASE_REMOVE_SNAPSHOT)
    await backup.cancel()
    assert (await backup.rest())[-1].done.snapshot_removed
    await site.nothing_left(vm)


async def test_short_operations_log_in_once_and_out_again(site: Site):
    vm = await machine(site)
    listing = site.stub.ListVirtualMachines(
        agent_service_pb2.ListVirtualMachinesRequest(
            vcenter=await site.access(Operation.OPERATION_INVENTORY)
        ),
        timeout=WITHIN_S,
    )
    machines = [each async for page in listing for each in page.virtual_machines]
    (found,) = [each for each in machines if each.instance_uuid == vm.instance_uuid]
    assert [disk.capacity_bytes for disk in found.disks] == SIZES
    tested = await site.stub.TestVcenter(
        agent_service_pb2.TestVcenterRequest(vcenter=await site.access(Operation.OPERATION_TEST)),
        timeout=WITHIN_S,
    )
    assert len(tested.certificate_sha256) == 32
    counters = await site.counters()
    assert (counters["logins"], counters["sessions"]) == (2, 0)
