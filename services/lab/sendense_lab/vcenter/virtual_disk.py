# SPDX-License-Identifier: Apache-2.0
"""Virtual disks as vSphere shows them."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from sendense_lab.vcenter.disk import DiskFiles, areas
from sendense_lab.vcenter.objects import ManagedObject

_DEVICE = vim.vm.device


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
    sharing: str = "sharingNone"
    """ "sharingMultiWriter": several VMs may have it."""
    key_id: str = ""
    """Not empty: an encrypted disk."""


class Disk:
    """One virtual disk."""

    def __init__(self, number: int, spec: DiskSpec, files: DiskFiles, datastore: ManagedObject) -> None:
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
        self._datastore = datastore

    @property
    def in_snapshots(self) -> bool:
        """Whether vSphere snapshots it."""
        return not self.spec.disk_mode.startswith("independent")

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
        name = self._datastore.get("name")
        folder = self.files.directory.name
        backing = None
        files = [f"{self.files.name}.vmdk"]
        files += [delta.file.name.replace("-delta", "") for delta in self.files.deltas[:deltas]]
        for file in files:
            backing = _DEVICE.VirtualDisk.FlatVer2BackingInfo(
                fileName=f"[{name}] {folder}/{file}",
                datastore=self._datastore.reference,
                diskMode=self.spec.disk_mode,
                sharing=self.spec.sharing,
                thinProvisioned=True,
                uuid=self.backing_uuid,
                parent=backing,
                changeId=change_id,
            )
            if self.spec.key_id:
                provider = vim.encryption.KeyProviderId(id="lab")
                backing.keyId = vim.encryption.CryptoKeyId(keyId=self.spec.key_id, providerId=provider)
        capacity = self.files.capacity_bytes
        return _DEVICE.VirtualDisk(
            key=self.key,
            controllerKey=1000,
            unitNumber=self._unit,
            capacityInKB=capacity // 1024,
            capacityInBytes=capacity,
            diskObjectId=self.object_id,
            deviceInfo=vim.Description(label=self.label, summary=f"{capacity // 1024:,} KB"),
            backing=backing,
        )


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
