# SPDX-License-Identifier: Apache-2.0
"""Virtual disks as hardware lists have them: which can be protected, and which can be read how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

_DEVICE = vim.vm.device
_DISK = _DEVICE.VirtualDisk
_WITH_CHANGE_ID = (
    _DISK.FlatVer2BackingInfo,
    _DISK.SparseVer2BackingInfo,
    _DISK.SeSparseBackingInfo,
    _DISK.RawDiskMappingVer1BackingInfo,
    _DISK.RawDiskVer2BackingInfo,
)
# What else there is (vSAN, vVols, PMem) keeps disks as objects, not as files that can be read by HTTPS.
_WITH_PLAIN_FILES = {"VMFS", "NFS", "NFS41"}


@dataclass(frozen=True)
class VirtualDisk:
    """One disk of a hardware list."""

    key: int
    label: str
    capacity_bytes: int
    disk_object_id: str
    backing_uuid: str
    change_id: str
    """Empty: none."""
    file_name: str
    """Of its newest file, as "[datastore] folder/name.vmdk"."""
    unprotectable_reason: str
    """Why vSphere leaves it out of snapshots, or it cannot carry a change ID; empty: it can be protected."""
    vddk_reason: str
    """Why only VMware's library can read it; empty: its file can be read by HTTPS."""


def disks_of(
    devices: Iterable[Any], datastore_types: Mapping[str, str] | None = None
) -> Iterator[VirtualDisk]:
    """The virtual disks in a hardware list.

    Args:
        devices: the list.
        datastore_types: by managed object ID, as "VMFS"; one that is not in it is taken for good.
    """
    devices = list(devices)
    shared = {
        device.key
        for device in devices
        if isinstance(device, _DEVICE.VirtualController)
        and getattr(device, "sharedBus", None) not in (None, "noSharing")
    }
    for device in devices:
        if isinstance(device, _DISK):
            backing = device.backing
            capacity = device.capacityInBytes or device.capacityInKB * 1024
            yield VirtualDisk(
                key=device.key,
                label=device.deviceInfo.label if device.deviceInfo else f"disk {device.key}",
                capacity_bytes=capacity,
                disk_object_id=device.diskObjectId or "",
                backing_uuid=getattr(backing, "uuid", None) or "",
                change_id=getattr(backing, "changeId", None) or "",
                file_name=getattr(backing, "fileName", None) or "",
                unprotectable_reason=_unprotectable(device, shared),
                vddk_reason=_needs_vddk(backing, datastore_types or {}),
            )


def _unprotectable(disk: Any, shared_controllers: set[int]) -> str:
    backing = disk.backing
    mode = getattr(backing, "diskMode", None) or ""
    if mode.startswith("independent"):
        return "independent"
    if (
        isinstance(backing, _DISK.RawDiskMappingVer1BackingInfo)
        and backing.compatibilityMode == "physicalMode"
    ):
        return "physical_rdm"
    if disk.controllerKey in shared_controllers or getattr(backing, "sharing", None) == "sharingMultiWriter":
        return "shared_bus"
    if not isinstance(backing, _WITH_CHANGE_ID):
        return "unsupported_backing"
    return ""


def _needs_vddk(backing: Any, datastore_types: Mapping[str, str]) -> str:
    if type(backing) is not _DISK.FlatVer2BackingInfo:
        return f"its backing is {type(backing).__name__.rsplit('.', 1)[-1]}"
    if backing.keyId is not None:
        return "it is encrypted"
    if backing.parent is not None:
        return "it has snapshots or is a linked clone"
    kind = datastore_types.get(moid(backing.datastore), "") if backing.datastore is not None else ""
    if kind and kind.upper() not in _WITH_PLAIN_FILES:
        return f"its datastore is of type {kind}"
    return ""


def moid(reference: Any) -> str:
    """The managed object ID of a reference."""
    return str(reference._moId)  # noqa: SLF001 - pyvmomi's name for it
