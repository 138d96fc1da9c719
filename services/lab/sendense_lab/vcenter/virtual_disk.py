# SPDX-License-Identifier: Apache-2.0
"""Virtual disks as vSphere shows them."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyVmomi import vim

from sendense_lab.vcenter.datastore import Datastore
from sendense_lab.vcenter.disk import DiskFiles, areas

_DEVICE = vim.vm.device
_DISK = _DEVICE.VirtualDisk
_BACKINGS: dict[str, Any] = {
    "flat": _DISK.FlatVer2BackingInfo,
    "sparse": _DISK.SparseVer2BackingInfo,
    "sesparse": _DISK.SeSparseBackingInfo,
    "rdm_virtual": _DISK.RawDiskMappingVer1BackingInfo,
    "rdm_physical": _DISK.RawDiskMappingVer1BackingInfo,
    "pmem": _DISK.LocalPMemBackingInfo,
}
SHARED_CONTROLLER = 1001
"""Device key of the controller whose disks other VMs can reach."""


@dataclass(frozen=True)
class DiskSpec:
    """How a disk is made."""

    capacity_bytes: int
    """A multiple of 512, more than 0."""
    image: str = ""
    """Raw image whose bytes it begins with; empty: all zeroes."""
    unit_number: int | None = None
    """None: its place in the list."""
    disk_mode: str = "persistent"
    """ "independent_persistent": vSphere leaves it out of snapshots."""
    sharing: Literal["sharingNone", "sharingMultiWriter"] = "sharingNone"
    """ "sharingMultiWriter": several VMs may have it; left out of snapshots."""
    key_id: str = ""
    """Not empty: an encrypted disk."""
    kind: Literal["flat", "sparse", "sesparse", "rdm_virtual", "rdm_physical", "pmem"] = "flat"
    """Of its backing; "rdm_physical" and "pmem" are left out of snapshots."""
    shared_bus: Literal["noSharing", "virtualSharing", "physicalSharing"] = "noSharing"
    """How the controller it hangs on shares its bus; if it does, the disk is left out of snapshots."""
    linked_clone: bool = False
    """Whether its base has a parent in another VM's folder."""
    datastore: str = ""
    """Where it is; empty: where its VM is."""


class Disk:
    """One virtual disk."""

    def __init__(self, number: int, spec: DiskSpec, files: DiskFiles, datastore: Datastore) -> None:
        """Begins with the image, if there is one."""
        if spec.image:
            _fill(files.base, Path(spec.image), spec.capacity_bytes)
        self.number = number
        self.key = 2000 + number
        self.label = f"Hard disk {number + 1}"
        self.files = files
        self.spec = spec
        self.backing_uuid = str(uuid.uuid4())
        self.object_id = f"{uuid.uuid4().int % 900 + 100}-{self.key}"
        self.tracking_id = ""
        """UUID of the current change tracking; empty: off."""
        self._unit = number if spec.unit_number is None else spec.unit_number
        self.datastore = datastore

    @property
    def in_snapshots(self) -> bool:
        """Whether vSphere snapshots it."""
        left_out = self.spec.kind in {"rdm_physical", "pmem"} or self.spec.disk_mode.startswith("independent")
        return not left_out and not self.is_shared

    @property
    def is_shared(self) -> bool:
        """Whether other VMs may have it too."""
        return self.spec.sharing != "sharingNone" or self.spec.shared_bus != "noSharing"

    @property
    def descriptor(self) -> str:
        """Its base's descriptor, as "[datastore] folder/name.vmdk"."""
        return f"[{self.datastore.name}] {self.files.directory.name}/{self.files.name}.vmdk"

    def keep(self, target: Path) -> None:
        """Copies what the guest sees now into a raw file."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.files.deltas:
            _copy_sparse(self.files.base, target)
            return
        with target.open("wb") as file:
            file.truncate(self.files.capacity_bytes)
            for start, length in areas(self.files.allocated(), self.files.capacity_bytes):
                file.seek(start)
                file.write(self.files.read(start, length))

    def device(self, deltas: int, change_id: str | None) -> Any:
        """As it is in a hardware list, `deltas` files above its base."""
        folder = self.files.directory.name
        backing = self._parent() if self.spec.linked_clone else None
        files = [f"{self.files.name}.vmdk"]
        files += [delta.file.name.replace("-delta", "") for delta in self.files.deltas[:deltas]]
        for file in files:
            backing = self._backing(f"[{self.datastore.name}] {folder}/{file}", backing, change_id)
        capacity = self.files.capacity_bytes
        return _DEVICE.VirtualDisk(
            key=self.key,
            controllerKey=1000 if self.spec.shared_bus == "noSharing" else SHARED_CONTROLLER,
            unitNumber=self._unit,
            capacityInKB=capacity // 1024,
            capacityInBytes=capacity,
            diskObjectId=self.object_id,
            deviceInfo=vim.Description(label=self.label, summary=f"{capacity // 1024:,} KB"),
            backing=backing,
        )

    def _parent(self) -> Any:
        """Of a linked clone: a disk of the VM that it was cloned from."""
        return _DISK.FlatVer2BackingInfo(
            fileName=f"[{self.datastore.name}] template/template.vmdk",
            datastore=self.datastore.reference,
            diskMode="persistent",
        )

    def _backing(self, file_name: str, parent: Any, change_id: str | None) -> Any:
        values: dict[str, Any] = {
            "fileName": file_name,
            "datastore": self.datastore.reference,
            "diskMode": self.spec.disk_mode,
            "sharing": self.spec.sharing,
            "thinProvisioned": True,
            "uuid": self.backing_uuid,
            "parent": parent,
            "changeId": change_id,
        }
        if self.spec.kind.startswith("rdm"):
            values["compatibilityMode"] = self.spec.kind.removeprefix("rdm_") + "Mode"
            values["lunUuid"] = "0200000000" + self.backing_uuid.replace("-", "")
            values["deviceName"] = f"vml.{values['lunUuid']}"
        if self.spec.key_id:
            provider = vim.encryption.KeyProviderId(id="lab")
            values["keyId"] = vim.encryption.CryptoKeyId(keyId=self.spec.key_id, providerId=provider)
        kind = _BACKINGS[self.spec.kind]
        known = {each.name for each in kind._GetPropertyList()}  # noqa: SLF001 - as pyvmomi's users do
        return kind(**{name: value for name, value in values.items() if name in known})


def _fill(base: Path, image: Path, capacity_bytes: int) -> None:
    """Copies an image sparsely; the file keeps the disk's size."""
    if image.stat().st_size > capacity_bytes:
        raise ValueError(f"{image} is larger than the disk")
    _copy_sparse(image, base)
    with base.open("r+b") as file:
        file.truncate(capacity_bytes)


def _copy_sparse(source: Path, target: Path) -> None:
    cp = shutil.which("cp") or "cp"
    subprocess.run([cp, "--sparse=always", "--reflink=auto", str(source), str(target)], check=True)
