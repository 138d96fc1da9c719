# SPDX-License-Identifier: Apache-2.0
"""The simulated vCenter with a scenario, seen by a client that knows nothing of ours."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pyVmomi import vim
from tests.integration.lab.kit import (
    GRANULE,
    areas_of,
    connected,
    cookie_of,
    disks,
    https,
    take_snapshot,
    track,
    wait,
)

from sendense_lab.client import LabClient, LabError

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

_BACKING = vim.vm.device.VirtualDisk
SCENARIO = """
title = "All kinds of things"
[outside]
cannot = "for a test"
[vcenter]
version = "7.0"
hosts = ["esx-a", "esx-b"]
[[datastores]]
name = "first"
free_bytes = "5GiB"
[[datastores]]
name = "second"
type = "NFS41"
[[vm]]
name = "many"
count = 3
disks = [{ capacity_bytes = "64KiB" }]
[[vm]]
name = "old"
on = false
host = "esx-b"
datastore = "second"
snapshots = ["yesterday", "today"]
disks = [{ capacity_bytes = "1MiB", data = ["64KiB+64KiB"] }]
[[vm]]
name = "kinds"
disks = [
  { capacity_bytes = "128KiB" },
  { capacity_bytes = "128KiB", kind = "sparse" },
  { capacity_bytes = "128KiB", kind = "sesparse" },
  { capacity_bytes = "128KiB", kind = "rdm_virtual" },
  { capacity_bytes = "128KiB", kind = "rdm_physical" },
  { capacity_bytes = "128KiB", kind = "pmem" },
  { capacity_bytes = "128KiB", sharing = "sharingMultiWriter" },
  { capacity_bytes = "128KiB", shared_bus = "physicalSharing" },
  { capacity_bytes = "128KiB", linked_clone = true },
  { capacity_bytes = "128KiB", key_id = "k" },
]
[[vm]]
name = "web"
disks = [{ capacity_bytes = "2MiB", data = ["0+64KiB"] }, { capacity_bytes = "1MiB" }]
[settings]
areas_per_page = 5
[[backup]]
vm = "web"
settings = { areas_per_page = 1, quiesce_fails = true }
before = [{ command = "set_power", vm = "many-0002", on = false }]
faults = [{ operation = "CurrentTime", fault = "vim.fault.TaskInProgress" }]
events = [{ at = "CurrentTime", call = 9, command = "expire_sessions" }]
expect = { state = "succeeded" }
[[backup]]
vm = "web"
expect = { state = "succeeded" }
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab() -> AsyncIterator[LabClient]:
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    file = directory / "scenario.toml"
    file.write_text(SCENARIO)
    async with LabClient.start(directory, options=["--scenario", str(file)]) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def instance(lab: LabClient) -> Iterator[Any]:
    with connected(lab) as service:
        yield service


@contextlib.asynccontextmanager
async def settings(lab: LabClient, **values: Any) -> AsyncIterator[None]:
    before = {name: await lab.command("setting", name=name) for name in values}
    await lab.command("set", **values)
    try:
        yield
    finally:
        await lab.command("set", **before)


def vm(instance: Any, name: str) -> Any:
    (datacenter,) = instance.content.rootFolder.childEntity
    (found,) = [each for each in datacenter.vmFolder.childEntity if each.name == name]
    return found


async def test_hosts_datastores_and_vms_are_as_the_file_says(instance: Any) -> None:
    about = instance.content.about
    assert (about.version, about.apiVersion) == ("7.0.3", "7.0.3.0")
    (datacenter,) = instance.content.rootFolder.childEntity
    (cluster,) = datacenter.hostFolder.childEntity
    assert [host.name for host in cluster.host] == ["esx-a", "esx-b"]
    stores = {each.name: each.summary for each in datacenter.datastore}
    assert {name: each.type for name, each in stores.items()} == {"first": "VMFS", "second": "NFS41"}
    assert stores["first"].freeSpace == 5 << 30
    hosts = [vm(instance, f"many-{number:04d}").runtime.host.name for number in (1, 2, 3)]
    assert hosts == ["esx-a", "esx-b", "esx-a"]
    old = vm(instance, "old")
    assert (old.runtime.host.name, [each.name for each in old.datastore]) == ("esx-b", ["second"])
    assert old.runtime.powerState == vim.VirtualMachine.PowerState.poweredOff
    (root,) = old.snapshot.rootSnapshotList
    assert (root.name, root.childSnapshotList[0].name) == ("yesterday", "today")


async def test_disks_of_all_kinds_and_which_of_them_are_in_a_snapshot(instance: Any) -> None:
    machine = vm(instance, "kinds")
    found = {disk.key: disk for disk in disks(machine)}
    kinds = [type(found[key].backing) for key in sorted(found)]
    assert kinds[:6] == [
        _BACKING.FlatVer2BackingInfo,
        _BACKING.SparseVer2BackingInfo,
        _BACKING.SeSparseBackingInfo,
        _BACKING.RawDiskMappingVer1BackingInfo,
        _BACKING.RawDiskMappingVer1BackingInfo,
        _BACKING.LocalPMemBackingInfo,
    ]
    modes = [found[key].backing.compatibilityMode for key in (2003, 2004)]
    assert modes == ["virtualMode", "physicalMode"]
    assert found[2006].backing.sharing == "sharingMultiWriter"
    controllers = {each.key: each for each in machine.config.hardware.device if hasattr(each, "sharedBus")}
    assert controllers[found[2007].controllerKey].sharedBus == "physicalSharing"
    assert controllers[found[2000].controllerKey].sharedBus == "noSharing"
    assert found[2008].backing.parent is not None
    assert found[2009].backing.keyId.keyId == "k"
    snapshot = take_snapshot(machine)
    assert [disk.key for disk in disks(snapshot)] == [2000, 2001, 2002, 2003, 2008, 2009]
    wait(snapshot.RemoveSnapshot_Task(False, True))


async def test_shared_disks_may_refuse_a_snapshot_of_a_running_vm(lab: LabClient, instance: Any) -> None:
    async with settings(lab, shared_disks_refuse_snapshots=True):
        with pytest.raises(vim.fault.SnapshotFault):
            take_snapshot(vm(instance, "kinds"))
        wait(take_snapshot(vm(instance, "web")).RemoveSnapshot_Task(False, True))


async def test_a_disk_that_moves_keeps_identity_bytes_and_change_tracking(
    lab: LabClient, instance: Any
) -> None:
    added = await lab.add_vm("mover", [4 * GRANULE])
    machine = vm(instance, "mover")
    track(machine)
    first = take_snapshot(machine)
    change_id = disks(first)[0].backing.changeId
    wait(first.RemoveSnapshot_Task(False, True))
    (before,) = disks(machine)
    await lab.guest_write("mover", 2000, GRANULE, b"moved")
    locator = vim.vm.RelocateSpec.DiskLocator(
        diskId=2000, datastore=next(each for each in instance.content.rootFolder.childEntity[0].datastore
                                    if each.name == "second"),
    )  # fmt: skip
    wait(machine.RelocateVM_Task(vim.vm.RelocateSpec(disk=[locator])))
    (after,) = disks(machine)
    assert before.backing.fileName == "[first] mover/mover.vmdk"
    assert after.backing.fileName == "[second] mover/mover.vmdk"
    assert (after.backing.uuid, after.diskObjectId) == (before.backing.uuid, before.diskObjectId)
    second = take_snapshot(machine)
    assert areas_of(machine, second, 2000, change_id) == [(GRANULE, GRANULE)]
    with https(lab) as connection:
        for store, status in (("first", 404), ("second", 200)):
            path = f"/folder/mover/mover-flat.vmdk?dcPath=DC0&dsName={store}"
            connection.request("GET", path, headers=cookie_of(instance))
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == status
    assert body[GRANULE : GRANULE + 5] == b"moved"
    assert added.disks == [2000]


async def test_an_administrator_changes_disks_and_power(lab: LabClient, instance: Any) -> None:
    await lab.add_vm("changed", [GRANULE])
    machine = vm(instance, "changed")

    def change(operation: str, disk: Any) -> None:
        spec = vim.vm.device.VirtualDeviceSpec(operation=operation, device=disk)
        wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[spec])))

    change("add", _BACKING(key=-1, capacityInBytes=2 * GRANULE, unitNumber=5))
    first, second = disks(machine)
    assert (second.key, second.unitNumber, second.capacityInBytes) == (2001, 5, 2 * GRANULE)
    second.capacityInBytes = 3 * GRANULE
    change("edit", second)
    assert disks(machine)[1].capacityInBytes == 3 * GRANULE
    change("remove", first)
    assert [disk.key for disk in disks(machine)] == [2001]
    second.capacityInBytes = GRANULE
    with pytest.raises(vim.fault.InvalidDeviceSpec):
        change("edit", second)
    wait(machine.PowerOffVM_Task())
    assert machine.runtime.powerState == "poweredOff"
    with pytest.raises(vim.fault.InvalidPowerState):
        wait(machine.PowerOffVM_Task())
    wait(machine.PowerOnVM_Task())
    assert machine.runtime.powerState == "poweredOn"


async def test_no_more_snapshots_than_the_limit(lab: LabClient, instance: Any) -> None:
    machine = vm(instance, "many-0001")
    async with settings(lab, snapshot_limit=1):
        first = take_snapshot(machine)
        with pytest.raises(vim.fault.TooManySnapshotLevels):
            take_snapshot(machine)
    wait(first.RemoveSnapshot_Task(False, True))


async def test_consolidation_goes_on_for_a_while(lab: LabClient, instance: Any) -> None:
    machine = vm(instance, "many-0003")
    async with settings(lab, consolidation_seconds=600):
        wait(take_snapshot(machine).RemoveSnapshot_Task(False, True))
        assert machine.runtime.consolidationNeeded is True
    async with settings(lab, consolidation_seconds=0):
        wait(take_snapshot(machine).RemoveSnapshot_Task(False, True))
        assert machine.runtime.consolidationNeeded is False


async def test_a_datastore_may_call_a_whole_disk_used(lab: LabClient, instance: Any) -> None:
    await lab.add_vm("used", [10 * GRANULE + 512])
    machine = vm(instance, "used")
    track(machine)
    snapshot = take_snapshot(machine)
    assert areas_of(machine, snapshot, 2000, "*") == []
    async with settings(lab, used_areas_whole=True):
        assert areas_of(machine, snapshot, 2000, "*") == [(0, 10 * GRANULE + 512)]


async def test_a_session_ends_after_so_many_calls(lab: LabClient, instance: Any) -> None:
    with connected(lab) as other:
        async with settings(lab, session_calls=3):
            path = "/folder/web/web.vmdk?dcPath=DC0&dsName=first"
            for _ in range(5):  # of which files are not
                with https(lab) as connection:
                    connection.request("GET", path, headers=cookie_of(other))
                    assert connection.getresponse().status == 200
            for _ in range(3):
                other.CurrentTime()
            with pytest.raises(vim.fault.NotAuthenticated):
                other.CurrentTime()
    instance.CurrentTime()


async def test_a_session_that_is_silent_ends(lab: LabClient) -> None:
    with connected(lab) as service:
        service.CurrentTime()
        async with settings(lab, session_idle_seconds=0.05):
            await asyncio.sleep(0.2)
            with pytest.raises(vim.fault.NotAuthenticated):
                service.CurrentTime()


async def test_a_silent_session_is_not_counted_although_nobody_asks_for_it(lab: LabClient) -> None:
    with connected(lab):
        before = (await lab.counters())["sessions"]
        async with settings(lab, session_idle_seconds=0.05):
            await asyncio.sleep(0.2)
            assert (await lab.counters())["sessions"] == 0 < before


async def test_sessions_are_seen_and_ended(lab: LabClient, instance: Any) -> None:
    with connected(lab) as other:
        manager = instance.content.sessionManager
        keys = {each.key for each in manager.sessionList}
        mine = {each.key for each in manager.sessionList if f'"{each.key}"' in instance._stub.cookie}
        assert len(mine) == 1
        manager.TerminateSession(list(keys - mine))
        with pytest.raises(vim.fault.NotAuthenticated):
            other.CurrentTime()
        with pytest.raises(vim.fault.NotFound):
            manager.TerminateSession(["none"])


async def test_what_is_planned_happens_at_its_call_once_and_in_order(lab: LabClient, instance: Any) -> None:
    for text in ("first", "last"):
        await lab.command(
            "plan_event", at="CurrentTime", call=2, command="guest_fill",
            arguments={"vm": "web", "disk": 2001, "offset_bytes": 0, "length_bytes": 8, "seed": text},
        )  # fmt: skip
    instance.CurrentTime()
    assert len(await lab.command("planned_events")) == 2
    assert await lab.guest_read("web", 2001, 0, 8) == bytes(8)
    instance.CurrentTime()
    assert await lab.command("planned_events") == []
    written = await lab.guest_read("web", 2001, 0, 8)
    await lab.command("guest_fill", vm="web", disk=2001, offset_bytes=0, length_bytes=8, seed="last")
    assert await lab.guest_read("web", 2001, 0, 8) == written
    await lab.command("guest_zero", vm="web", disk=2001, offset_bytes=0, length_bytes=8)
    instance.CurrentTime()
    assert await lab.guest_read("web", 2001, 0, 8) == bytes(8)


@pytest.mark.parametrize(
    "event",
    [
        {"at": "CurrentTime", "command": "no_such_command"},
        {"at": "CurrentTime", "command": "_machine"},
        {"at": "CurrentTime", "command": "set_power", "arguments": {"vm": "web"}},
    ],
)
async def test_an_event_that_cannot_be_is_refused_at_once(lab: LabClient, event: dict[str, Any]) -> None:
    with pytest.raises(LabError):
        await lab.command("plan_event", **event)


async def test_backups_are_played_one_after_another_and_leave_no_order_behind(
    lab: LabClient, instance: Any
) -> None:
    assert await lab.command("setting", name="areas_per_page") == 5
    first = await lab.command("next_backup")
    assert (first["vm"], first["expect"]["state"]) == ("web", "succeeded")
    assert await lab.command("setting", name="areas_per_page") == 1
    assert vm(instance, "many-0002").runtime.powerState == "poweredOff"
    with pytest.raises(vim.fault.TaskInProgress):
        instance.CurrentTime()
    assert len(await lab.command("planned_events")) == 1
    await lab.command("next_backup")
    assert await lab.command("setting", name="areas_per_page") == 5
    assert await lab.command("setting", name="quiesce_fails") is False
    assert await lab.command("planned_events") == []
    instance.CurrentTime()
    assert await lab.command("next_backup") is None


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sendense_lab.main", *arguments], capture_output=True, text=True, check=False
    )


async def test_the_command_lists_shows_and_refuses(tmp_path: Path) -> None:
    assert "empty-windows" in command("scenarios", "list").stdout
    assert "window_bytes" in command("scenarios", "show", "empty-windows").stdout
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('titel = "x"')
    for arguments in (
        ["scenarios", "show", str(wrong)],
        ["vcenter", f"--state={tmp_path}", f"--scenario={wrong}"],
    ):
        done = command(*arguments)
        assert done.returncode == 2
        assert f"{wrong}: titel is not known; allowed: about" in done.stderr
