# SPDX-License-Identifier: Apache-2.0
"""Datastores: a type, some space, and a directory with the files on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyVmomi import vim

from sendense_lab.vcenter.objects import ManagedObject, Registry
from sendense_lab.vcenter.soap import make

GIB = 1 << 30


@dataclass(frozen=True)
class DatastoreSpec:
    """How a datastore is made."""

    name: str
    type: Literal["VMFS", "NFS", "NFS41", "vsan", "VVOL", "PMEM"] = "VMFS"
    """What it says it is; files are kept in the same way on all."""
    capacity_bytes: int = 2048 * GIB
    """What it says that it can hold; nothing enforces it."""
    free_bytes: int = 1024 * GIB
    """What it says is free."""


class Datastore(ManagedObject):
    """One datastore."""

    def __init__(self, registry: Registry, moid: str, spec: DatastoreSpec, files: Path) -> None:
        """Args: files: the directory that holds what is on it."""
        files.mkdir(parents=True, exist_ok=True)
        self.name = spec.name
        self.type: str = spec.type
        self.files = files
        self.capacity_bytes = spec.capacity_bytes
        self.free_bytes = spec.free_bytes
        super().__init__(
            registry, vim.Datastore, moid, name=spec.name, summary=self._summary, info=self._info
        )

    @property
    def _url(self) -> str:
        return f"ds:///vmfs/volumes/{self.name}/"

    def _summary(self) -> object:
        return make(
            vim.Datastore.Summary,
            datastore=self.reference,
            name=self.name,
            url=self._url,
            capacity=self.capacity_bytes,
            freeSpace=self.free_bytes,
            accessible=True,
            type=self.type,
        )

    def _info(self) -> object:
        return vim.host.VmfsDatastoreInfo(
            name=self.name, url=self._url, freeSpace=self.free_bytes, maxFileSize=1 << 46
        )
