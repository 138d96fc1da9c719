# SPDX-License-Identifier: Apache-2.0
"""Changed areas asked of the simulated vCenter by pyvmomi."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from tests.integration.lab.kit import GRANULE, areas_of, disks, machine_of, take_snapshot, track, wait

from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

CAPACITY = 40 * GRANULE + 512


async def tracked(lab: LabClient, instance: Any, name: str) -> Any:
    machine = machine_of(instance, await lab.add_vm(name, [CAPACITY]))
    track(machine)
    return machine


def change_id(snapshot: Any) -> str:
    return str(disks(snapshot)[0].backing.changeId)


async def test_what_was_written_between_two_snapshots_is_told_in_granules(
    lab: LabClient, instance: Any
) -> None:
    machine = await tracked(lab, instance, "granules")
    await lab.guest_write("granules", 2000, 0, b"before")
    first = take_snapshot(machine)
    await lab.guest_write("granules", 2000, 3 * GRANULE + 5, b"x")
    await lab.guest_write("granules", 2000, 5 * GRANULE - 1, b"xy")
    await lab.guest_write("granules", 2000, CAPACITY - 1, b"z")
    wait(first.RemoveSnapshot_Task(False, True))
    before = change_id(take_snapshot(machine))
    second = take_snapshot(machine)
    assert before.split("/")[0] == change_id(second).split("/")[0]
    assert areas_of(machine, second, 2000, before) == []
    expected = [(3 * GRANULE, 3 * GRANULE), (40 * GRANULE, 512)]
    first_id = f"{before.split('/')[0]}/1"
    assert areas_of(machine, second, 2000, first_id) == expected
    assert areas_of(machine, second, 2000, "*") == [(0, GRANULE), *expected]


@pytest.mark.parametrize(("per_page", "window"), [(1, 0), (3, 0), (2000, GRANULE), (2, 7 * GRANULE + 512)])
async def test_random_writes_rebuild_the_disk_from_its_changes(
    lab: LabClient, instance: Any, per_page: int, window: int
) -> None:
    name = f"random-{per_page}-{window}"
    machine, chance = await tracked(lab, instance, name), random.Random(per_page + window)
    await lab.guest_write(name, 2000, 0, chance.randbytes(CAPACITY))
    rebuilt, before, snapshot = bytearray(CAPACITY), "*", None
    await lab.command("set", areas_per_page=per_page, window_bytes=window)
    for _ in range(3):
        taken = take_snapshot(machine)
        frozen = await lab.guest_read(name, 2000, 0, CAPACITY)
        await lab.guest_write(name, 2000, chance.randrange(CAPACITY - 9), b"in-flight")
        for start, length in areas_of(machine, taken, 2000, before):
            rebuilt[start : start + length] = frozen[start : start + length]
        assert rebuilt == frozen
        before = change_id(taken)
        if snapshot is not None:
            wait(snapshot.RemoveSnapshot_Task(False, True))
        snapshot = taken
        for _ in range(chance.randrange(8)):
            length = chance.randrange(1, 2 * GRANULE)
            await lab.guest_write(name, 2000, chance.randrange(CAPACITY - length), chance.randbytes(length))


async def test_rule_08_asking_at_the_capacity_is_an_invalid_argument(lab: LabClient, instance: Any) -> None:
    machine = await tracked(lab, instance, "capacity")
    snapshot = take_snapshot(machine)
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        machine.QueryChangedDiskAreas(snapshot, 2000, CAPACITY, "*")
    assert caught.value.invalidProperty == "startOffset"
    last = machine.QueryChangedDiskAreas(snapshot, 2000, CAPACITY - 512, "*")
    assert (last.startOffset, last.length) == (CAPACITY - 512, 512)


async def test_rule_09_an_empty_page_is_not_the_end(lab: LabClient, instance: Any) -> None:
    machine = await tracked(lab, instance, "windows")
    await lab.guest_write("windows", 2000, CAPACITY - 1, b"x")
    snapshot = take_snapshot(machine)
    await lab.command("set", window_bytes=10 * GRANULE)
    first = machine.QueryChangedDiskAreas(snapshot, 2000, 0, "*")
    assert (first.length, list(first.changedArea)) == (10 * GRANULE, [])
    assert areas_of(machine, snapshot, 2000, "*") == [(40 * GRANULE, 512)]


async def test_rule_06_a_foreign_change_id_is_a_file_fault(lab: LabClient, instance: Any) -> None:
    machine = await tracked(lab, instance, "foreign")
    old = change_id(take_snapshot(machine))
    await lab.command("remove_snapshots", vm="foreign")
    await lab.command("reset_tracking", vm="foreign")
    snapshot = take_snapshot(machine)
    assert change_id(snapshot).split("/")[0] != old.split("/")[0]
    with pytest.raises(vim.fault.FileFault) as caught:
        machine.QueryChangedDiskAreas(snapshot, 2000, 0, old)
    assert caught.value.file == "[datastore1] foreign/foreign.vmdk"
    with pytest.raises(vmodl.fault.InvalidArgument) as wrong:
        machine.QueryChangedDiskAreas(snapshot, 2000, 0, "nonsense")
    assert wrong.value.invalidProperty == "changeId"


@pytest.mark.parametrize(("key", "named"), [(2001, "deviceKey"), (0, "deviceKey")])
async def test_another_disk_is_an_invalid_argument(
    lab: LabClient, instance: Any, key: int, named: str
) -> None:
    machine = await tracked(lab, instance, f"key-{key}")
    with pytest.raises(vmodl.fault.InvalidArgument) as caught:
        machine.QueryChangedDiskAreas(take_snapshot(machine), key, 0, "*")
    assert caught.value.invalidProperty == named


async def test_rule_10_a_removed_snapshot_answers_nothing(lab: LabClient, instance: Any) -> None:
    machine = await tracked(lab, instance, "removed")
    snapshot = take_snapshot(machine)
    await lab.command("remove_snapshots", vm="removed")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        machine.QueryChangedDiskAreas(snapshot, 2000, 0, "*")


async def test_rule_12_trimmed_areas_changed_and_are_not_in_use(lab: LabClient, instance: Any) -> None:
    machine = await tracked(lab, instance, "trimmed")
    await lab.guest_write("trimmed", 2000, 0, b"x" * 4 * GRANULE)
    before = change_id(take_snapshot(machine))
    await lab.command("remove_snapshots", vm="trimmed")
    await lab.command("guest_trim", vm="trimmed", disk=2000, offset_bytes=GRANULE, length_bytes=GRANULE)
    snapshot = take_snapshot(machine)
    assert areas_of(machine, snapshot, 2000, before) == [(GRANULE, GRANULE)]
    assert areas_of(machine, snapshot, 2000, "*") == [(0, GRANULE), (2 * GRANULE, 2 * GRANULE)]
    assert await lab.guest_read("trimmed", 2000, GRANULE, GRANULE) == bytes(GRANULE)
