# SPDX-License-Identifier: Apache-2.0
"""Plans made of real answers: read and zeroed together, they turn the last point into this one."""

from __future__ import annotations

import random

import pytest
from tests.integration.vsphere.kit import GRANULE, fails, freeze, tracked

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import Session, Snapshot, find_machine
from sendense_agent.worker.plan import DiskPlan, plan_disk
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CAPACITY = 30 * GRANULE + 512


def point(snapshot: Snapshot, **changes: object) -> pb.PreviousDisk:
    """The disk's last point, as the hub knows it."""
    disk = snapshot.disks[0]
    known = {
        "key": disk.key,
        "disk_object_id": disk.disk_object_id,
        "backing_uuid": disk.backing_uuid,
        "capacity_bytes": disk.capacity_bytes,
        "change_id": disk.change_id,
    }
    return pb.PreviousDisk(**{**known, **changes})  # type: ignore[arg-type]


async def plan(
    snapshot: Snapshot, previous: pb.PreviousDisk | None, *, just_enabled: bool = False
) -> DiskPlan:
    return await plan_disk(snapshot, snapshot.disks[0], previous, tracking_just_enabled=just_enabled)


def apply(made: DiskPlan, before: bytes, source: bytes) -> bytes:
    """What a copy by this plan leaves: a fresh layer is all zeroes, an overlay shows what was before."""
    result = bytearray(before if made.mode == pb.DISK_MODE_INCREMENTAL else bytes(len(source)))
    for offset, length in made.read:
        result[offset : offset + length] = source[offset : offset + length]
    for offset, length in made.zero:
        result[offset : offset + length] = bytes(length)
    return bytes(result)


@pytest.mark.parametrize(("used", "per_page"), [(True, 2000), (True, 1), (False, 2)])
async def test_ff25_a_chain_of_plans_gives_each_moment_byte_for_byte(
    lab: LabClient, session: Session, used: bool, per_page: int
) -> None:
    name, chance = f"chain-{used}-{per_page}", random.Random(per_page)
    _, machine = await tracked(lab, session, name, CAPACITY)
    await lab.command("set", areas_per_page=per_page, used_areas=used)
    restored, previous = bytes(CAPACITY), None
    for round_ in range(4):
        for _ in range(5):
            length = chance.randrange(1, 3 * GRANULE)
            await lab.guest_write(name, 2000, chance.randrange(CAPACITY - length), chance.randbytes(length))
        first = chance.randrange(25)
        await lab.command(
            "guest_trim", vm=name, disk=2000, offset_bytes=first * GRANULE, length_bytes=3 * GRANULE
        )
        snapshot = await freeze(machine)
        source = await lab.guest_read(name, 2000, 0, CAPACITY)
        made = await plan(snapshot, previous)
        assert made.mode == (pb.DISK_MODE_INCREMENTAL if round_ else pb.DISK_MODE_FULL)
        restored = apply(made, restored, source)
        assert restored == source
        if used and round_:
            assert made.zero.total_bytes >= 3 * GRANULE
        if round_:
            assert made.read.total_bytes < CAPACITY
        previous = point(snapshot)
        await snapshot.remove()


async def test_rule_02_the_first_backup_after_tracking_was_turned_on_is_a_full(
    lab: LabClient, session: Session
) -> None:
    _, machine = await tracked(lab, session, "enabled", CAPACITY)
    await lab.guest_write("enabled", 2000, 5 * GRANULE, b"x")
    snapshot = await freeze(machine)
    made = await plan(snapshot, point(snapshot), just_enabled=True)
    assert (made.mode, made.reason) == (pb.DISK_MODE_COMPARED, "cbt_just_enabled")
    assert list(made.read) == [(5 * GRANULE, GRANULE)]


async def test_ff30_without_a_change_there_is_nothing_to_do(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "idle", CAPACITY)
    first = await freeze(machine)
    await first.remove()
    made = await plan(await freeze(machine), point(first))
    assert made.mode == pb.DISK_MODE_INCREMENTAL
    assert (made.read.total_bytes, made.zero.total_bytes, made.changed_bytes) == (0, 0, 0)


async def test_rule_12_what_changed_and_is_not_in_use_is_zeroed_not_skipped(
    lab: LabClient, session: Session
) -> None:
    _, machine = await tracked(lab, session, "trimmed", CAPACITY)
    await lab.guest_write("trimmed", 2000, 0, b"x" * 6 * GRANULE)
    first = await freeze(machine)
    await first.remove()
    await lab.command("guest_trim", vm="trimmed", disk=2000, offset_bytes=GRANULE, length_bytes=2 * GRANULE)
    await lab.guest_write("trimmed", 2000, 4 * GRANULE, b"y")
    made = await plan(await freeze(machine), point(first))
    assert list(made.zero) == [(GRANULE, 2 * GRANULE)]
    assert list(made.read) == [(4 * GRANULE, GRANULE)]
    assert made.changed_bytes == 3 * GRANULE


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"change_id": ""}, "change_id_missing"),
        ({"change_id": "52 00/1"}, "change_id_rejected"),
        ({"backing_uuid": "another"}, "identity_changed"),
        ({"disk_object_id": "1-2000"}, "identity_changed"),
        ({"capacity_bytes": CAPACITY - 512}, "capacity_changed"),
    ],
)
async def test_rule_06_whatever_cannot_be_trusted_is_a_full_of_that_disk(
    lab: LabClient, session: Session, changes: dict[str, object], reason: str
) -> None:
    name = f"untrusted-{reason}-{'-'.join(changes)}"
    _, machine = await tracked(lab, session, name, CAPACITY)
    await lab.guest_write(name, 2000, 0, b"x")
    snapshot = await freeze(machine)
    made = await plan(snapshot, point(snapshot, **changes))
    mode = pb.DISK_MODE_COMPARED if reason.startswith("change_id") else pb.DISK_MODE_FULL
    assert (made.mode, made.reason) == (mode, reason)
    assert list(made.read) == [(0, GRANULE)]
    assert made.message().mode_reason == reason


async def test_rule_05_another_disk_in_the_same_place_is_a_full(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "replaced", CAPACITY)
    first = await freeze(machine)
    await first.remove()
    await lab.command("replace_disk", vm="replaced", disk=2000, capacity_bytes=CAPACITY)
    await machine.refresh()
    made = await plan(await freeze(machine), point(first))
    assert (made.mode, made.reason) == (pb.DISK_MODE_FULL, "identity_changed")


async def test_rule_14_a_disk_that_was_resized_is_a_full_of_the_new_size(
    lab: LabClient, session: Session
) -> None:
    _, machine = await tracked(lab, session, "resized", CAPACITY)
    first = await freeze(machine)
    await first.remove()
    await lab.command("resize_disk", vm="resized", disk=2000, capacity_bytes=2 * CAPACITY)
    await lab.guest_write("resized", 2000, 2 * CAPACITY - 1, b"x")
    await machine.refresh()
    made = await plan(await freeze(machine), point(first))
    assert (made.mode, made.reason) == (pb.DISK_MODE_FULL, "capacity_changed")
    assert made.disk.capacity_bytes == 2 * CAPACITY
    assert made.read.end == 2 * CAPACITY


@pytest.mark.parametrize("fault", ["vim.fault.FileFault", "vmodl.fault.InvalidArgument"])
async def test_ff28_a_change_id_that_vsphere_rejects_is_a_full_in_the_same_run(
    lab: LabClient, session: Session, fault: str
) -> None:
    name = f"rejected-{fault}"
    _, machine = await tracked(lab, session, name, CAPACITY)
    await lab.guest_write(name, 2000, 0, b"x")
    first = await freeze(machine)
    await first.remove()
    snapshot = await freeze(machine)
    await lab.inject_fault("QueryChangedDiskAreas", fault, at_call=2)  # the first asks what is in use
    made = await plan(snapshot, point(first))
    assert (made.mode, made.reason) == (pb.DISK_MODE_COMPARED, "change_id_rejected")
    assert list(made.read) == [(0, GRANULE)]


async def test_ff28_lost_tracking_is_a_full_in_the_same_run(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "lost", CAPACITY)
    first = await freeze(machine)
    await first.remove()
    await lab.command("reset_tracking", vm="lost")
    made = await plan(await freeze(machine), point(first))
    assert (made.mode, made.reason) == (pb.DISK_MODE_COMPARED, "change_id_rejected")


@pytest.mark.parametrize("wrong", ["outside_page", "out_of_order", "beyond_end"])
async def test_rule_08_wrong_answers_stop_an_incremental_and_leave_a_full_possible(
    lab: LabClient, session: Session, wrong: str
) -> None:
    name = f"wrong-{wrong}"
    _, machine = await tracked(lab, session, name, CAPACITY)
    first = await freeze(machine)
    await first.remove()
    for granule in (1, 3, 5):
        await lab.guest_write(name, 2000, granule * GRANULE, b"x")
    snapshot = await freeze(machine)
    await lab.command("set", areas_wrong=wrong)
    with fails(Reason.REASON_CBT_INCONSISTENT):
        await plan(snapshot, point(first))
    made = await plan(snapshot, None)
    assert list(made.read) == [(0, CAPACITY)]


async def test_rule_02_a_vm_that_is_off_is_read_as_a_whole_without_a_change_id(
    lab: LabClient, session: Session
) -> None:
    vm = await lab.add_vm("off", [CAPACITY])
    await lab.command("set_power", vm=vm.name, on=False)
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    assert await machine.enable_changed_block_tracking()
    made = await plan(await freeze(machine), None, just_enabled=True)
    assert made.message().change_id == ""
    assert list(made.read) == [(0, CAPACITY)]


async def test_rule_27_of_a_disk_that_is_not_trusted_everything_is_read_whatever_vsphere_says(
    lab: LabClient, session: Session
) -> None:
    vm, machine = await tracked(lab, session, "untrusted", CAPACITY)
    await lab.guest_write(vm.name, 2000, 0, b"first")
    first = await freeze(machine)
    await first.remove()
    await lab.guest_write(vm.name, 2000, 5 * GRANULE, b"left out, in both lists")
    await lab.command("set", areas_left_out=1)
    snapshot = await freeze(machine)
    believed = await plan_disk(snapshot, snapshot.disks[0], point(first), tracking_just_enabled=False)
    assert (believed.mode, believed.read.total_bytes, believed.whole) == (pb.DISK_MODE_INCREMENTAL, 0, False)
    for previous, mode in ((point(first), pb.DISK_MODE_COMPARED), (None, pb.DISK_MODE_FULL)):
        made = await plan_disk(
            snapshot, snapshot.disks[0], previous, tracking_just_enabled=False, trusted=False
        )
        assert made.mode == mode
        assert list(made.read) == [(0, CAPACITY)]
        assert made.message().whole
