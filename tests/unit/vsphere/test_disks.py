# SPDX-License-Identifier: Apache-2.0
"""Which disks of a hardware list can be protected, and which can be read without VMware's library."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from sendense_agent.vsphere.disks import VirtualDisk, disks_of

pytestmark = pytest.mark.unit

DEVICE = vim.vm.device
DISK = DEVICE.VirtualDisk


def disk(backing: Any, key: int = 2000, **values: Any) -> Any:
    known = {"capacityInBytes": 65536, "capacityInKB": 64, "controllerKey": 1000, "unitNumber": 0}
    return DISK(key=key, backing=backing, **{**known, **values})


def flat(**values: Any) -> Any:
    return DISK.FlatVer2BackingInfo(fileName="[ds] vm/vm.vmdk", diskMode="persistent", uuid="u-1", **values)


def controller(kind: Any, shared: str | None) -> Any:
    return kind(key=1000, busNumber=0, **({"sharedBus": shared} if shared else {}))


def only(*devices: Any, stores: dict[str, str] | None = None) -> VirtualDisk:
    (found,) = disks_of(devices, stores)
    return found


@pytest.mark.parametrize(
    "backing",
    [
        flat(),
        DISK.SparseVer2BackingInfo(fileName="[ds] a.vmdk", diskMode="persistent"),
        DISK.SeSparseBackingInfo(fileName="[ds] a.vmdk", diskMode="persistent"),
        DISK.RawDiskMappingVer1BackingInfo(
            fileName="[ds] a.vmdk", diskMode="persistent", compatibilityMode="virtualMode"
        ),
        DISK.RawDiskVer2BackingInfo(descriptorFileName="[ds] a.vmdk", deviceName="/dev/x"),
    ],
    ids=lambda backing: type(backing).__name__.rsplit(".", 1)[-1],
)
def test_rule_01_backings_that_can_carry_a_change_id_can_be_protected(backing: Any) -> None:
    assert only(disk(backing)).unprotectable_reason == ""


@pytest.mark.parametrize(
    ("backing", "reason"),
    [
        (DISK.FlatVer2BackingInfo(fileName="[ds] a", diskMode="independent_persistent"), "independent"),
        (DISK.FlatVer2BackingInfo(fileName="[ds] a", diskMode="independent_nonpersistent"), "independent"),
        (
            DISK.RawDiskMappingVer1BackingInfo(
                fileName="[ds] a", diskMode="persistent", compatibilityMode="physicalMode"
            ),
            "physical_rdm",
        ),
        (flat(sharing="sharingMultiWriter"), "shared_bus"),
        (DISK.FlatVer1BackingInfo(fileName="[ds] a", diskMode="persistent"), "unsupported_backing"),
        (DISK.SparseVer1BackingInfo(fileName="[ds] a", diskMode="persistent"), "unsupported_backing"),
    ],
)
def test_rule_01_others_are_left_out_with_their_reason(backing: Any, reason: str) -> None:
    assert only(disk(backing)).unprotectable_reason == reason


@pytest.mark.parametrize(
    ("kind", "shared", "reason"),
    [
        (DEVICE.ParaVirtualSCSIController, "noSharing", ""),
        (DEVICE.ParaVirtualSCSIController, "virtualSharing", "shared_bus"),
        (DEVICE.VirtualLsiLogicSASController, "physicalSharing", "shared_bus"),
        (DEVICE.VirtualNVMEController, "physicalSharing", "shared_bus"),
        (DEVICE.VirtualAHCIController, None, ""),
    ],
)
def test_rule_01_disks_on_a_shared_bus_are_left_out(kind: Any, shared: str | None, reason: str) -> None:
    assert only(controller(kind, shared), disk(flat())).unprotectable_reason == reason
    assert only(disk(flat()), controller(kind, shared)).unprotectable_reason == reason
    assert only(controller(kind, shared), disk(flat(), controllerKey=1001)).unprotectable_reason == ""


def test_rule_05_a_disk_is_known_by_its_identities_and_not_by_its_place() -> None:
    devices = [
        disk(flat(), 2000, diskObjectId="1-2000"),
        disk(flat(), 2001, diskObjectId="1-2001"),  # the same unit number and file name
    ]
    found = list(disks_of(devices))
    assert [(each.key, each.disk_object_id, each.backing_uuid) for each in found] == [
        (2000, "1-2000", "u-1"),
        (2001, "1-2001", "u-1"),
    ]
    assert list(disks_of(reversed(devices))) == found[::-1]


def test_rule_22_sizes_are_bytes() -> None:
    assert only(disk(flat(), capacityInBytes=5 * 2**30 + 512, capacityInKB=5 * 2**20)).capacity_bytes == (
        5 * 2**30 + 512
    )
    old = disk(flat(), capacityInBytes=None, capacityInKB=3)
    assert only(old).capacity_bytes == 3072


def test_rule_03_the_change_id_is_that_of_the_list() -> None:
    assert only(disk(flat(changeId="52 aa/4"))).change_id == "52 aa/4"
    assert only(disk(flat())).change_id == ""


@pytest.mark.parametrize(
    ("backing", "reason"),
    [
        (flat(), ""),
        (
            flat(
                keyId=vim.encryption.CryptoKeyId(keyId="k", providerId=vim.encryption.KeyProviderId(id="p"))
            ),
            "it is encrypted",
        ),
        (flat(parent=flat()), "it has snapshots or is a linked clone"),
        (
            DISK.SeSparseBackingInfo(fileName="[ds] a", diskMode="persistent"),
            "its backing is SeSparseBackingInfo",
        ),
        (
            DISK.RawDiskMappingVer1BackingInfo(
                fileName="[ds] a", diskMode="persistent", compatibilityMode="virtualMode"
            ),
            "its backing is RawDiskMappingVer1BackingInfo",
        ),
    ],
)
def test_rule_25_only_a_plain_flat_file_is_read_without_vddk(backing: Any, reason: str) -> None:
    assert only(disk(backing)).vddk_reason == reason


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("VMFS", ""),
        ("NFS", ""),
        ("NFS41", ""),
        ("", ""),
        ("vsan", "its datastore is of type vsan"),
        ("VVOL", "its datastore is of type VVOL"),
        ("PMEM", "its datastore is of type PMEM"),
    ],
)
def test_rule_25_only_datastores_with_plain_files_are_read_without_vddk(kind: str, reason: str) -> None:
    store = vim.Datastore("datastore-11")
    found = only(disk(flat(datastore=store)), stores={"datastore-11": kind, "datastore-12": "vsan"})
    assert found.vddk_reason == reason
    assert only(disk(flat(datastore=store))).vddk_reason == ""


def test_other_devices_are_no_disks() -> None:
    assert (
        list(disks_of([controller(DEVICE.VirtualAHCIController, None), DEVICE.VirtualCdrom(key=3000)])) == []
    )
