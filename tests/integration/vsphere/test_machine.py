# SPDX-License-Identifier: Apache-2.0
"""One VM: found by its identity, looked at, tracked, snapshotted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tests.integration.vsphere.kit import GRANULE, HUB, JOB, calls, eventually, fails, freeze, tracked

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import Session, find_machine, machine, tasks
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

OTHER_JOB = JOB[:-1] + "2"


async def test_rule_21_of_two_vms_of_one_name_the_right_one_is_found(
    lab: LabClient, session: Session
) -> None:
    vms = [await lab.add_vm("twin", [GRANULE * number]) for number in (1, 2)]
    for number, vm in enumerate(vms, start=1):
        found = await find_machine(session, vm.instance_uuid, "twin")
        assert (found.name, found.instance_uuid) == ("twin", vm.instance_uuid)
        assert [disk.capacity_bytes for disk in found.preflight().eligible] == [GRANULE * number]


async def test_a_vm_that_is_gone_is_not_found(session: Session) -> None:
    with fails(Reason.REASON_VM_NOT_FOUND, "no VM web .*00000000"):
        await find_machine(session, "00000000-0000-0000-0000-000000000000", "web")


async def test_rule_01_disks_that_snapshots_leave_out_are_named(lab: LabClient, session: Session) -> None:
    vm = await lab.add_vm(
        "skipped",
        [
            GRANULE,
            {"capacity_bytes": GRANULE, "disk_mode": "independent_persistent"},
            {"capacity_bytes": GRANULE, "sharing": "sharingMultiWriter"},
        ],
    )
    found = (await find_machine(session, vm.instance_uuid, vm.name)).preflight()
    assert [disk.key for disk in found.eligible] == [2000]
    assert [(disk.key, disk.unprotectable_reason) for disk in found.skipped] == [
        (2001, "independent"),
        (2002, "shared_bus"),
    ]


@pytest.mark.parametrize(
    ("disks", "words"),
    [
        ([], "no disks"),
        ([{"capacity_bytes": 512, "disk_mode": "independent_persistent"}], "Hard disk 1: indep"),
    ],
)
async def test_rule_01_a_vm_that_no_snapshot_can_protect_is_refused(
    lab: LabClient, session: Session, disks: list[dict[str, object]], words: str
) -> None:
    vm = await lab.add_vm(f"unprotectable-{len(disks)}", disks)
    with fails(Reason.REASON_VM_HAS_NO_PROTECTABLE_DISK, words):
        (await find_machine(session, vm.instance_uuid, vm.name)).preflight()


async def test_rule_05_two_disks_with_one_unit_number_are_two_disks(lab: LabClient, session: Session) -> None:
    vm = await lab.add_vm("units", [{"capacity_bytes": GRANULE * size, "unit_number": 3} for size in (1, 2)])
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    snapshot = await freeze(machine)
    for found in (machine.preflight().eligible, snapshot.disks):
        assert [(disk.key, disk.capacity_bytes) for disk in found] == [(2000, GRANULE), (2001, 2 * GRANULE)]
    urls = [await snapshot.source_url(disk) for disk in snapshot.disks]
    assert ["units-flat.vmdk" in urls[0], "units_1-flat.vmdk" in urls[1]] == [True, True]


async def test_rule_25_an_encrypted_disk_is_refused_before_the_snapshot(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("encrypted", [{"capacity_bytes": GRANULE, "key_id": "k1"}])
    with fails(Reason.REASON_DISK_NEEDS_VDDK, "Hard disk 1 of VM encrypted .*VDDK.*it is encrypted"):
        (await find_machine(session, vm.instance_uuid, vm.name)).preflight()


async def test_rule_25_a_disk_with_deltas_is_refused_before_the_snapshot(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("delta", [GRANULE])
    await lab.command("take_snapshot", vm=vm.name, name="somebody's")
    with fails(Reason.REASON_DISK_NEEDS_VDDK, "it has snapshots or is a linked clone"):
        (await find_machine(session, vm.instance_uuid, vm.name)).preflight()


@pytest.mark.parametrize(
    ("kind", "plain"), [("vsan", False), ("VVOL", False), ("NFS", True), ("NFS41", True)]
)
async def test_rule_25_a_datastore_without_plain_files_is_refused_before_the_snapshot(
    lab: LabClient, session: Session, kind: str, plain: bool
) -> None:
    vm = await lab.add_vm(f"on-{kind}", [GRANULE])
    await lab.command("set", datastore_type=kind)
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    if plain:
        assert len(machine.preflight().eligible) == 1
        return
    with fails(Reason.REASON_DISK_NEEDS_VDDK, f"its datastore is of type {kind}"):
        machine.preflight()


async def test_rule_02_tracking_is_turned_on_once(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "once", GRANULE)
    assert machine.changed_block_tracking
    before = await calls(lab, "ReconfigVM_Task")
    assert not await machine.enable_changed_block_tracking()
    assert await calls(lab, "ReconfigVM_Task") == before


async def test_rule_02_tracking_is_not_turned_on_while_there_is_a_snapshot(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("with-snapshot", [GRANULE])
    await lab.command("take_snapshot", vm=vm.name, name="somebody's")
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    assert not await machine.enable_changed_block_tracking()
    assert not (await lab.command("state", vm=vm.name))["changed_block_tracking"]
    await lab.command("remove_snapshots", vm=vm.name)
    await machine.refresh()
    assert await machine.enable_changed_block_tracking()


async def test_rule_27_a_reset_forgets_what_was_tracked(lab: LabClient, session: Session) -> None:
    vm, machine = await tracked(lab, session, "reset-tracking", GRANULE)
    before = await freeze(machine)
    await before.remove()
    await machine.refresh()
    await machine.reset_changed_block_tracking("hub-1", "reset-1")
    state = await lab.command("state", vm=vm.name)
    assert (state["snapshots"], state["changed_block_tracking"]) == ([], True)
    after = await freeze(machine)
    ids = [each.disks[0].change_id.rpartition("/")[0] for each in (before, after)]
    assert all(ids)
    assert ids[0] != ids[1]


async def test_a_reset_is_refused_while_there_is_a_snapshot_and_changes_nothing(
    lab: LabClient, session: Session
) -> None:
    vm, machine = await tracked(lab, session, "reset-refused", GRANULE)
    await lab.command("take_snapshot", vm=vm.name, name="somebody's")
    await machine.refresh()
    with fails(Reason.REASON_RESET_REFUSED, "somebody's"):
        await machine.reset_changed_block_tracking("hub-1", "reset-1")
    state = await lab.command("state", vm=vm.name)
    assert (len(state["snapshots"]), state["changed_block_tracking"]) == (1, True)


async def test_the_snapshot_of_a_reset_that_broke_off_is_known_as_ours(
    lab: LabClient, session: Session
) -> None:
    vm, machine = await tracked(lab, session, "reset-broken", GRANULE)
    await lab.command("inject_fault", operation="RemoveSnapshot_Task", fault="vim.fault.NoPermission")
    with fails(Reason.REASON_VCENTER_NO_PERMISSION):
        await machine.reset_changed_block_tracking("hub-1", "reset-1")
    await lab.command("clear_faults")
    assert len((await lab.command("state", vm=vm.name))["snapshots"]) == 1
    (left,) = await machine.own_snapshots("hub-1", {"reset-1"})
    await left.remove()
    assert (await lab.command("state", vm=vm.name))["snapshots"] == []


async def test_rule_02_it_takes_effect_at_our_own_snapshot(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "effect", GRANULE)
    assert [disk.change_id for disk in machine.preflight().eligible] == [""]
    assert (await freeze(machine)).disks[0].change_id


async def test_rule_02_a_vm_that_is_off_has_no_change_id(lab: LabClient, session: Session) -> None:
    vm = await lab.add_vm("off", [GRANULE])
    await lab.command("set_power", vm=vm.name, on=False)
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    assert not machine.powered_on
    assert await machine.enable_changed_block_tracking()
    snapshot = await freeze(machine)
    assert snapshot.disks[0].change_id == ""
    assert await snapshot.allocated(snapshot.disks[0]) is None


async def test_rule_03_change_ids_are_the_snapshots_not_the_vms(lab: LabClient, session: Session) -> None:
    vm, machine = await tracked(lab, session, "ids", GRANULE)
    snapshot = await freeze(machine)
    at_snapshot = snapshot.disks[0].change_id
    await snapshot.remove()
    await lab.guest_write(vm.name, 2000, 0, b"x")
    await machine.refresh()
    assert machine.preflight().eligible[0].change_id != at_snapshot
    second = await freeze(machine)
    assert list(await second.changed_since(second.disks[0], at_snapshot)) == [(0, GRANULE)]


@pytest.mark.parametrize("mode", [pb.QUIESCE_MODE_REQUIRE, pb.QUIESCE_MODE_TRY])
async def test_a_guest_that_can_be_quiesced_is(
    lab: LabClient, session: Session, mode: pb.QuiesceMode.ValueType
) -> None:
    vm = await lab.add_vm(f"quiet-{mode}", [GRANULE])
    snapshot = await freeze(await find_machine(session, vm.instance_uuid, vm.name), quiesce=mode)
    assert (snapshot.quiesce_result, snapshot.warnings) == ("quiesced", [])


async def test_a_guest_that_cannot_be_quiesced_is_snapshotted_all_the_same_and_it_is_said(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("unquiet", [GRANULE])
    await lab.command("set", quiesce_fails=True)
    snapshot = await freeze(
        await find_machine(session, vm.instance_uuid, vm.name), quiesce=pb.QUIESCE_MODE_TRY
    )
    assert snapshot.quiesce_result == "crash_consistent"
    ((code, words),) = snapshot.warnings
    assert code == "quiesce_fell_back"
    assert "ApplicationQuiesceFault" in words
    assert len(await lab.snapshots(vm.name)) == 1


async def test_a_guest_that_must_be_quiesced_and_cannot_be_gets_no_snapshot(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("must", [GRANULE])
    await lab.command("set", quiesce_fails=True)
    with fails(Reason.REASON_QUIESCE_FAILED, "ApplicationQuiesceFault") as caught:
        await freeze(await find_machine(session, vm.instance_uuid, vm.name), quiesce=pb.QUIESCE_MODE_REQUIRE)
    assert "--quiesce try" in caught.value.remedy
    assert await lab.snapshots(vm.name) == []


async def test_a_guest_without_running_tools_is_never_called_quiesced(
    lab: LabClient, session: Session
) -> None:
    """vSphere ignores the wish there and says nothing."""
    vm = await lab.add_vm("no tools", [GRANULE])
    await lab.command("set_machine", vm=vm.name, tools_running=False)
    with fails(Reason.REASON_QUIESCE_FAILED, "VMware Tools do not run"):
        await freeze(await find_machine(session, vm.instance_uuid, vm.name), quiesce=pb.QUIESCE_MODE_REQUIRE)
    assert await lab.snapshots(vm.name) == []
    snapshot = await freeze(
        await find_machine(session, vm.instance_uuid, vm.name), quiesce=pb.QUIESCE_MODE_TRY
    )
    assert snapshot.quiesce_result == "crash_consistent"
    assert [code for code, _ in snapshot.warnings] == ["quiesce_fell_back"]


@pytest.mark.parametrize("off", [True, False])
async def test_quiescing_is_not_asked_for_when_it_is_not_wanted_or_there_is_no_guest(
    lab: LabClient, session: Session, off: bool
) -> None:
    vm = await lab.add_vm(f"no-guest-{off}", [GRANULE])
    await lab.command("set", quiesce_fails=True)
    await lab.command("set_power", vm=vm.name, on=not off)
    mode = pb.QUIESCE_MODE_REQUIRE if off else pb.QUIESCE_MODE_OFF
    snapshot = await freeze(await find_machine(session, vm.instance_uuid, vm.name), quiesce=mode)
    assert (snapshot.quiesce_result, snapshot.warnings) == ("not_requested", [])


@pytest.mark.parametrize(
    ("operation", "fault", "reason"),
    [
        ("CreateSnapshot_Task", "vim.fault.InvalidState", Reason.REASON_SNAPSHOT_FAILED),
        ("CreateSnapshot_Task", "vmodl.fault.SystemError", Reason.REASON_SNAPSHOT_FAILED),
        ("CreateSnapshot_Task", "vim.fault.NoPermission", Reason.REASON_VCENTER_NO_PERMISSION),
        ("task CreateSnapshot_Task", "vim.fault.SnapshotFault", Reason.REASON_SNAPSHOT_FAILED),
        ("task CreateSnapshot_Task", "vmodl.fault.NotSupported", Reason.REASON_SNAPSHOT_FAILED),
    ],
)
async def test_ff08_a_snapshot_that_fails_says_why(
    lab: LabClient, session: Session, operation: str, fault: str, reason: Reason.ValueType
) -> None:
    vm = await lab.add_vm(f"failing {operation} {fault}", [GRANULE])
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    await lab.inject_fault(operation, fault, message="by order")
    with fails(reason, f"making a snapshot of VM failing.* answers {fault}: by order") as caught:
        await freeze(machine)
    assert caught.value.metadata["vm"] == vm.name
    assert caught.value.metadata["fault"] == fault


async def test_a_busy_vm_is_waited_for(
    lab: LabClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_BUSY_WAIT_S", 0.01)
    vm = await lab.add_vm("busy", [GRANULE])
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    await lab.inject_fault("CreateSnapshot_Task", "vim.fault.TaskInProgress", times=3)
    await lab.inject_fault("task CreateSnapshot_Task", "vim.fault.TaskInProgress")
    before = await calls(lab, "CreateSnapshot_Task")
    assert await (await freeze(machine)).exists()
    assert await calls(lab, "CreateSnapshot_Task") == before + 5
    monkeypatch.setattr("sendense_agent.vsphere.machine._PATIENCE_S", 0.0)
    await lab.inject_fault("CreateSnapshot_Task", "vim.fault.TaskInProgress", times=100)
    with fails(Reason.REASON_SNAPSHOT_FAILED, "TaskInProgress"):
        await freeze(machine)


async def test_a_snapshot_that_takes_too_long_is_given_up(
    lab: LabClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SNAPSHOT_WITHIN_S", 0.05)
    vm = await lab.add_vm("slow", [GRANULE])
    found = await find_machine(session, vm.instance_uuid, vm.name)
    await lab.command("delay_task", method="CreateSnapshot_Task", seconds=60)
    with fails(Reason.REASON_DEADLINE_EXCEEDED, "making a snapshot of VM slow"):
        await freeze(found)


async def test_rule_17_a_snapshot_says_whose_it_is_and_holds_no_memory(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("named", [GRANULE])
    await freeze(await find_machine(session, vm.instance_uuid, vm.name))
    (found,) = await lab.snapshots(vm.name)
    assert found["name"] == f"sendense-{JOB[:8]}"
    assert f"hub={HUB} job={JOB}" in found["description"]


async def test_rule_17_own_snapshots_are_this_hubs_and_these_jobs_alone(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("own", [GRANULE])
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    mine = await freeze(machine)
    await machine.create_snapshot("hub-10", JOB, pb.QUIESCE_MODE_OFF)
    other_job = await freeze(machine, OTHER_JOB)
    await freeze(machine, JOB + "0")
    await lab.command("take_snapshot", vm=vm.name, name=f"sendense-{JOB[:8]}")
    await lab.command("take_snapshot", vm=vm.name, name=f"hub={HUB} job={JOB}")

    async def own(*jobs: str) -> list[str]:
        return [each.moref for each in await machine.own_snapshots(HUB, set(jobs))]

    assert await own(JOB) == [mine.moref]
    assert await own(JOB, OTHER_JOB) == [other_job.moref, mine.moref]
    assert await own() == await own("") == await own(JOB[:8]) == []
    assert [each.moref for each in await machine.own_snapshots("hub", {JOB})] == []
    for snapshot in await machine.own_snapshots(HUB, {JOB, OTHER_JOB}):
        await snapshot.remove()
    assert len(await lab.snapshots(vm.name)) == 4


async def test_rule_17_a_snapshot_that_is_still_being_made_is_waited_for(
    lab: LabClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_ASK_FOR_TASKS_EVERY_S", 0.01)
    vm = await lab.add_vm("in the making", [GRANULE])
    found = await find_machine(session, vm.instance_uuid, vm.name)
    await lab.command("delay_task", method="CreateSnapshot_Task", seconds=60)
    making = asyncio.create_task(freeze(found))

    async def begun() -> bool:
        return bool(await session.properties(found._reference, "recentTask"))

    await eventually(begun, "vSphere makes it")
    looking = asyncio.create_task(found.own_snapshots(HUB, {JOB}))
    before = await calls(lab, "RetrievePropertiesEx")

    async def asked() -> bool:
        return await calls(lab, "RetrievePropertiesEx") >= before + 20

    await eventually(asked, "both ask")
    assert not looking.done()
    await lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    assert [each.moref for each in await looking] == [(await making).moref]


async def test_rule_17_one_that_never_ends_is_said(
    lab: LabClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_ASK_FOR_TASKS_EVERY_S", 0.01)
    monkeypatch.setattr(machine, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(machine, "_SNAPSHOT_WITHIN_S", 0.05)
    vm = await lab.add_vm("endless", [GRANULE])
    found = await find_machine(session, vm.instance_uuid, vm.name)
    await lab.command("delay_task", method="CreateSnapshot_Task", seconds=60)
    with fails(Reason.REASON_DEADLINE_EXCEEDED):
        await freeze(found)
    with fails(Reason.REASON_DEADLINE_EXCEEDED, "still makes or removes"):
        await found.own_snapshots(HUB, {JOB})


@pytest.mark.parametrize("name", ["plain", "a/b 50% +#ü", "[x] y"])
async def test_ff33_nvram_and_configuration_are_kept(lab: LabClient, session: Session, name: str) -> None:
    vm = await lab.add_vm(name, [GRANULE])
    found = await find_machine(session, vm.instance_uuid, name)
    (file,) = (lab.ca_file.parent / "datastore" / name.replace("/", "_")).glob("*.nvram")
    assert await found.nvram() == file.read_bytes() != b""
    snapshot = await freeze(found)
    config = json.loads(await snapshot.config_json())
    assert config["instanceUuid"] == vm.instance_uuid
    assert config["firmware"] == "efi"
    kinds = {device["_vimtype"].rpartition(".")[2] for device in config["hardware"]["device"]}
    assert {"VirtualDisk", "ParaVirtualSCSIController", "VirtualVmxnet3"} <= kinds
    assert await snapshot.config_json() == await snapshot.config_json()


async def test_configuration_and_time_are_those_of_the_snapshot(lab: LabClient, session: Session) -> None:
    vm = await lab.add_vm("as-it-was", [GRANULE])
    before = await session.now()
    snapshot = await freeze(await find_machine(session, vm.instance_uuid, "as-it-was"))
    after = await session.now()
    config = json.loads(await snapshot.config_json())
    files = [
        device["backing"]["fileName"]
        for device in config["hardware"]["device"]
        if "Disk" in device["_vimtype"]
    ]
    assert files == ["[datastore1] as-it-was/as-it-was.vmdk"], "not the delta, which goes with the snapshot"
    made_at = await snapshot.made_at()
    assert made_at is not None
    assert before <= made_at <= after
    await snapshot.remove()
    assert await snapshot.made_at() == made_at


async def test_ff33_a_vm_without_nvram_has_none(lab: LabClient, session: Session) -> None:
    vm = await lab.add_vm("no-nvram", [GRANULE])
    found = await find_machine(session, vm.instance_uuid, vm.name)
    Path(lab.ca_file.parent / "datastore" / vm.name / f"{vm.name}.nvram").unlink()
    assert await found.nvram() == b""
