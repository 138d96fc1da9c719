# SPDX-License-Identifier: Apache-2.0
"""Snapshots of the simulated vCenter: what they freeze, byte for byte, and how their tasks behave."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from tests.integration.lab.kit import GRANULE, disks, machine_of, take_snapshot, track, wait

from sendense_lab.client import LabClient, LabMachine

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CAPACITY = 6 * GRANULE + 512


def base(lab: LabClient, vm: LabMachine, number: int = 0) -> Path:
    suffix = f"_{number}" if number else ""
    return lab.ca_file.parent / "datastore" / vm.name / f"{vm.name}{suffix}-flat.vmdk"


async def test_rule_10_a_snapshot_freezes_the_base_and_the_guest_writes_to_a_delta(
    lab: LabClient, instance: Any
) -> None:
    vm = await lab.add_vm("frozen", [CAPACITY])
    before = random.Random(1).randbytes(CAPACITY)
    await lab.guest_write(vm.name, 2000, 0, before)
    take_snapshot(machine_of(instance, vm))
    await lab.guest_write(vm.name, 2000, GRANULE - 100, b"new" * 100)
    await lab.guest_write(vm.name, 2000, CAPACITY - 1, b"!")
    assert base(lab, vm).read_bytes() == before
    after = bytearray(before)
    after[GRANULE - 100 : GRANULE + 200] = b"new" * 100
    after[-1:] = b"!"
    assert await lab.guest_read(vm.name, 2000, 0, CAPACITY) == after
    assert (await lab.command("state", vm=vm.name))["deltas"] == ["frozen-000001-delta.vmdk"]


async def test_a_removed_snapshot_merges_its_delta_into_the_base(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("merged", [CAPACITY])
    snapshot = take_snapshot(machine_of(instance, vm))
    await lab.guest_write(vm.name, 2000, 70_000, b"new")
    assert base(lab, vm).read_bytes() == bytes(CAPACITY)
    wait(snapshot.RemoveSnapshot_Task(False, True))
    assert base(lab, vm).read_bytes() == bytes(70_000) + b"new" + bytes(CAPACITY - 70_003)
    state = await lab.command("state", vm=vm.name)
    assert (state["snapshots"], state["deltas"]) == ([], [])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
async def test_snapshots_go_in_any_order_and_the_guest_notices_nothing(
    lab: LabClient, instance: Any, order: tuple[int, ...]
) -> None:
    vm = await lab.add_vm(f"order-{order}", [CAPACITY])
    machine, snapshots, guest = machine_of(instance, vm), [], bytearray(CAPACITY)
    for number in range(3):
        snapshots.append(take_snapshot(machine, f"s{number}"))
        await lab.guest_write(vm.name, 2000, number * GRANULE, bytes([number + 1]) * (GRANULE + 7))
        guest[number * GRANULE : (number + 1) * GRANULE + 7] = bytes([number + 1]) * (GRANULE + 7)
    for number in order:
        wait(snapshots[number].RemoveSnapshot_Task(False, True))
        assert await lab.guest_read(vm.name, 2000, 0, CAPACITY) == guest
    assert base(lab, vm).read_bytes() == guest


async def test_removing_with_children_removes_the_later_ones_too(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("children", [CAPACITY])
    machine = machine_of(instance, vm)
    names = [take_snapshot(machine, name) for name in ("a", "b", "c")]
    wait(names[1].RemoveSnapshot_Task(True, True))
    assert [each["name"] for each in await lab.snapshots(vm.name)] == ["a"]


async def test_the_tree_shows_every_snapshot_with_its_words(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("tree", [CAPACITY])
    machine = machine_of(instance, vm)
    assert not machine.snapshot
    first, second = take_snapshot(machine, "first"), take_snapshot(machine, "second", quiesce=True)
    (root,) = machine.snapshot.rootSnapshotList
    (child,) = root.childSnapshotList
    assert (root.name, root.description, root.snapshot, root.quiesced) == ("first", "words", first, False)
    assert (child.name, child.snapshot, child.quiesced) == ("second", second, True)
    assert machine.snapshot.currentSnapshot == second
    assert child.id > root.id


async def test_a_snapshot_shows_the_files_that_are_frozen_with_it(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("files", [CAPACITY])
    machine = machine_of(instance, vm)
    first, second = take_snapshot(machine), take_snapshot(machine)

    def chain(item: Any) -> list[str]:
        backing, names = disks(item)[0].backing, []
        while backing is not None:
            names.append(backing.fileName.rpartition("/")[2])
            backing = backing.parent
        return names

    assert chain(first) == ["files.vmdk"]
    assert chain(second) == ["files-000001.vmdk", "files.vmdk"]
    assert chain(machine) == ["files-000002.vmdk", "files-000001.vmdk", "files.vmdk"]
    wait(first.RemoveSnapshot_Task(False, True))
    assert chain(second) == ["files.vmdk"]


async def test_rule_01_independent_disks_are_left_out(lab: LabClient, instance: Any) -> None:
    independent = {"capacity_bytes": CAPACITY, "disk_mode": "independent_persistent"}
    vm = await lab.add_vm("independent", [CAPACITY, independent])
    snapshot = take_snapshot(machine_of(instance, vm))
    assert [disk.key for disk in disks(snapshot)] == [2000]
    await lab.guest_write(vm.name, 2001, 0, b"x")
    assert base(lab, vm, 1).read_bytes()[:1] == b"x"
    await lab.command("remove_snapshots", vm=vm.name)
    assert await lab.guest_read(vm.name, 2001, 0, 1) == b"x"


async def test_rule_15_one_snapshot_holds_all_disks(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("both", [CAPACITY, 2 * GRANULE])
    snapshot = take_snapshot(machine_of(instance, vm))
    assert {disk.key: disk.capacityInBytes for disk in disks(snapshot)} == {2000: CAPACITY, 2001: 2 * GRANULE}
    assert len((await lab.command("state", vm=vm.name))["deltas"]) == 2


async def test_a_copy_can_be_kept_of_what_each_snapshot_froze(
    lab: LabClient, instance: Any, tmp_path: Path
) -> None:
    vm = await lab.add_vm("kept", [CAPACITY])
    machine = machine_of(instance, vm)
    await lab.command("hold_frozen", vm=vm.name, directory=str(tmp_path))
    kept, images = [], []
    for number in range(2):
        await lab.guest_write(vm.name, 2000, number * 100_000, b"data")
        images.append(await lab.guest_read(vm.name, 2000, 0, CAPACITY))
        kept.append(take_snapshot(machine)._moId)
    await lab.guest_write(vm.name, 2000, 0, b"later")
    assert [(tmp_path / f"{each}-2000.raw").read_bytes() for each in kept] == images


async def test_rule_02_tracking_takes_effect_at_the_next_snapshot(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("tracking", [CAPACITY])
    machine = machine_of(instance, vm)
    untracked = take_snapshot(machine)
    assert disks(untracked)[0].backing.changeId is None
    await lab.command("remove_snapshots", vm=vm.name)
    track(machine)
    assert machine.config.changeTrackingEnabled
    assert disks(machine)[0].backing.changeId is None
    assert disks(take_snapshot(machine))[0].backing.changeId


async def test_tracking_of_a_running_vm_begins_anew_only_when_it_was_off_at_a_snapshot(
    lab: LabClient, instance: Any
) -> None:
    vm = await lab.add_vm("off-and-on", [CAPACITY])
    machine = machine_of(instance, vm)

    async def tracking() -> str:
        change_id = disks(take_snapshot(machine))[0].backing.changeId
        await lab.command("remove_snapshots", vm=vm.name)
        return str(change_id).rpartition("/")[0]

    track(machine)
    before = await tracking()
    wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
    track(machine)
    assert await tracking() == before
    wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
    assert await tracking() == ""
    track(machine)
    assert await tracking() not in {"", before}


async def test_rule_02_a_vm_that_is_off_gets_no_change_id(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("off", [CAPACITY])
    machine = machine_of(instance, vm)
    await lab.command("set_power", vm=vm.name, on=False)
    track(machine)
    snapshot = take_snapshot(machine)
    assert disks(snapshot)[0].backing.changeId is None
    with pytest.raises(vim.fault.FileFault):
        machine.QueryChangedDiskAreas(snapshot, 2000, 0, "*")


async def test_rule_03_the_vms_own_change_id_is_not_its_snapshots(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("own-id", [CAPACITY])
    machine = machine_of(instance, vm)
    track(machine)
    snapshot = take_snapshot(machine)
    assert disks(snapshot)[0].backing.changeId != disks(machine)[0].backing.changeId


async def test_quiescing_can_fail(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("unquiet", [CAPACITY])
    await lab.command("set", quiesce_fails=True)
    with pytest.raises(vim.fault.ApplicationQuiesceFault):
        take_snapshot(machine_of(instance, vm), quiesce=True)
    assert await lab.snapshots(vm.name) == []
    assert take_snapshot(machine_of(instance, vm))


async def test_a_call_or_its_task_can_fail_by_order(lab: LabClient, instance: Any) -> None:
    machine = machine_of(instance, await lab.add_vm("faulty", [CAPACITY]))
    await lab.inject_fault("CreateSnapshot_Task", "vim.fault.InvalidState")
    with pytest.raises(vim.fault.InvalidState):
        machine.CreateSnapshot_Task("x", "", False, False)
    await lab.inject_fault("task CreateSnapshot_Task", "vim.fault.SnapshotFault", message="by order")
    task = machine.CreateSnapshot_Task("x", "", False, False)
    with pytest.raises(vim.fault.SnapshotFault, match="by order"):
        wait(task)
    assert await lab.snapshots("faulty") == []
    assert take_snapshot(machine)


async def test_rule_16_while_a_task_runs_on_a_vm_another_is_refused(lab: LabClient, instance: Any) -> None:
    machine = machine_of(instance, await lab.add_vm("busy", [CAPACITY]))
    await lab.command("delay_task", method="CreateSnapshot_Task", seconds=60)
    task = machine.CreateSnapshot_Task("slow", "", False, False)
    with pytest.raises(vim.fault.TaskInProgress) as caught:
        machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True))
    assert caught.value.task == task
    assert task.info.state in {vim.TaskInfo.State.queued, vim.TaskInfo.State.running}
    (recent,) = machine.recentTask
    assert (recent, recent.info.descriptionId) == (task, "VirtualMachine.createSnapshot")
    await lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    snapshot = wait(task)
    assert task.info.entity == machine
    wait(snapshot.RemoveSnapshot_Task(False, True))


async def test_a_disk_can_be_resized_or_replaced_without_snapshots(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("changed", [GRANULE])
    machine = machine_of(instance, vm)
    track(machine)
    snapshot = take_snapshot(machine)
    first = disks(snapshot)[0]
    with pytest.raises(Exception, match="snapshots"):
        await lab.command("resize_disk", vm=vm.name, disk=2000, capacity_bytes=CAPACITY)
    wait(snapshot.RemoveSnapshot_Task(False, True))
    await lab.guest_write(vm.name, 2000, 0, b"x")
    await lab.command("resize_disk", vm=vm.name, disk=2000, capacity_bytes=CAPACITY)
    second = disks(take_snapshot(machine))[0]
    assert (second.capacityInBytes, second.backing.uuid) == (CAPACITY, first.backing.uuid)
    assert second.backing.changeId.split("/")[0] != first.backing.changeId.split("/")[0]
    await lab.command("remove_snapshots", vm=vm.name)
    await lab.command("replace_disk", vm=vm.name, disk=2000, capacity_bytes=CAPACITY)
    (third,) = disks(machine)
    assert (third.key, third.diskObjectId) == (first.key, first.diskObjectId)
    assert third.backing.uuid != first.backing.uuid
    assert await lab.guest_read(vm.name, 2000, 0, 1) == b"\0"
