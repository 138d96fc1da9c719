# SPDX-License-Identifier: Apache-2.0
"""Answers that only odd inventories give: they end in words, not in a KeyError."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import VcenterTarget, datastore_files
from sendense_agent.vsphere.machine import Machine
from sendense_agent.vsphere.snapshot import Snapshot
from sendense_agent.vsphere.tasks import wait
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

DISK = vim.vm.device.VirtualDisk
VM = vim.VirtualMachine("vm-1")


class Answers:
    """A session that knows these properties, by object ID."""

    name = "north"
    target = VcenterTarget("north", "::1", 443)

    def __init__(self, **known: dict[str, Any]) -> None:
        self.known = {name.replace("_", "-"): properties for name, properties in known.items()}

    async def properties(self, reference: Any, *paths: str) -> dict[str, Any]:
        found = self.known.get(reference._moId, {})
        return {path: found[path] for path in paths if path in found}


def disk(key: int) -> Any:
    backing = DISK.FlatVer2BackingInfo(fileName="[ds] vm/vm.vmdk", diskMode="persistent")
    return DISK(key=key, backing=backing, capacityInBytes=65536, capacityInKB=64)


def machine(**properties: Any) -> Machine:
    return Machine(Answers(vm_1=properties), VM)  # type: ignore[arg-type]


async def test_a_vm_whose_configuration_vsphere_does_not_know_is_said_to_be_so() -> None:
    with pytest.raises(SendenseError, match="does not know the configuration of VM 50% off") as caught:
        await machine(name="50%25 off").refresh()
    assert caught.value.reason == Reason.REASON_VSPHERE_FAULT
    with pytest.raises(SendenseError):
        await machine().refresh()


async def test_rule_05_two_disks_with_one_device_key_are_refused() -> None:
    facts = {"name": "web", "config.instanceUuid": "u", "config.hardware.device": [disk(2000), disk(2000)]}
    found = machine(**facts)
    await found.refresh()
    with pytest.raises(SendenseError, match="VM web has 2 disks with the device key 2000") as caught:
        found.preflight()
    assert caught.value.reason == Reason.REASON_DISK_MISMATCH


async def test_rule_02_a_vm_that_cannot_track_changes_is_not_asked_to() -> None:
    found = machine(
        **{
            "name": "old",
            "config.instanceUuid": "u",
            "config.hardware.device": [disk(2000)],
            "capability.changeTrackingSupported": False,
        }
    )
    await found.refresh()
    assert not await found.enable_changed_block_tracking()


async def test_a_snapshot_without_a_hardware_list_has_failed() -> None:
    reference = vim.vm.Snapshot("snapshot-1")
    with pytest.raises(SendenseError, match="shows no disks of the snapshot of VM web") as caught:
        await Snapshot(Answers(), VM, reference, "web").load()  # type: ignore[arg-type]
    assert caught.value.reason == Reason.REASON_SNAPSHOT_FAILED


async def test_a_task_that_vsphere_shows_nothing_of_is_said_to_be_so() -> None:
    with pytest.raises(SendenseError, match="copying: vSphere shows nothing of its task"):
        await wait(Answers(), vim.Task("task-1"), doing="copying", timeout_s=30)  # type: ignore[arg-type]


async def test_a_task_that_failed_fails_with_its_own_fault() -> None:
    info = vim.TaskInfo(state="error", error=vmodl.fault.SystemError(msg="own words"))
    with pytest.raises(vmodl.fault.SystemError) as caught:
        await wait(Answers(task_1={"info": info}), vim.Task("task-1"), doing="x", timeout_s=30)  # type: ignore[arg-type]
    assert caught.value.msg == "own words"


@pytest.mark.parametrize(
    ("above", "path"),
    [
        ({"vm_1": {"parent": vim.Folder("group-v3")}}, "North%2FDC%201"),
        ({"vm_1": {"parentVApp": vim.VirtualApp("resgroup-v9")}}, "North%2FDC%201"),
        (
            {"vm_1": {"parent": vim.Folder("group-v3")}, "datacenter_2": {"name": "DC 1"}},
            "DC%201",  # a user with few rights does not see what is above
        ),
        ({"vm_1": {}}, ""),
    ],
)
async def test_the_datacenter_is_found_from_a_folder_and_from_a_vapp(
    above: dict[str, Any], path: str
) -> None:
    tree: dict[str, Any] = {
        "group_v3": {"name": "vm", "parent": vim.Datacenter("datacenter-2")},
        "resgroup_v9": {"name": "app", "parent": vim.ResourcePool("resgroup-8")},
        "resgroup_8": {"name": "Resources", "parent": vim.ClusterComputeResource("domain-c7")},
        "domain_c7": {"name": "Cluster", "parent": vim.Folder("group-h4")},
        "group_h4": {"name": "host", "parent": vim.Datacenter("datacenter-2")},
        "datacenter_2": {"name": "DC 1", "parent": vim.Folder("group-d9")},
        "group_d9": {"name": "North", "parent": vim.Folder("group-d1")},
        "group_d1": {"name": "Datacenters"},
        **above,
    }
    url = await datastore_files.address(Answers(**tree), VM, "[d s] a b/c#.vmdk")  # type: ignore[arg-type]
    assert url == f"https://[::1]:443/folder/a%20b/c%23.vmdk?dcPath={path}&dsName=d%20s"
