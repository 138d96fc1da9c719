# SPDX-License-Identifier: Apache-2.0
"""One datacenter with one host and one datastore, as a tree of folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from sendense_lab.vcenter.changed_areas import AreaSettings
from sendense_lab.vcenter.objects import ManagedObject, Registry
from sendense_lab.vcenter.soap import make

if TYPE_CHECKING:
    from sendense_lab.vcenter.machine import Machine

DATACENTER, DATASTORE = "DC0", "datastore1"


class Datacenter:
    """Where the VMs are, and how it behaves."""

    def __init__(self, registry: Registry, files: Path) -> None:
        """Args: files: what is on the datastore."""
        self.registry = registry
        self.files = files
        files.mkdir(parents=True, exist_ok=True)
        self.machines: list[Machine] = []
        self.areas = AreaSettings()
        """How QueryChangedDiskAreas answers."""
        self.datastore_type = "VMFS"
        """As "vsan"."""
        self.quiesce_fails = False
        """Whether guests cannot be quiesced."""

        self._datacenter: ManagedObject
        self._cluster: ManagedObject
        self.datastore: ManagedObject
        self.host: ManagedObject
        self.root = self._folder("group-d1", "Datacenters", lambda: [self._datacenter.reference])
        self.vm_folder = self._folder("group-v3", "vm", lambda: [each.reference for each in self.machines])
        self._host_folder = self._folder("group-h4", "host", lambda: [self._cluster.reference])
        self._store_folder = self._folder("group-s5", "datastore", lambda: [self.datastore.reference])
        self._network_folder = self._folder("group-n6", "network", list)
        self._datacenter = ManagedObject(
            registry,
            vim.Datacenter,
            "datacenter-2",
            name=DATACENTER,
            parent=self.root.reference,
            vmFolder=self.vm_folder.reference,
            hostFolder=self._host_folder.reference,
            datastoreFolder=self._store_folder.reference,
            networkFolder=self._network_folder.reference,
        )
        for folder in (self.vm_folder, self._host_folder, self._store_folder, self._network_folder):
            folder.properties["parent"] = self._datacenter.reference
        self.datastore = ManagedObject(
            registry,
            vim.Datastore,
            "datastore-11",
            name=DATASTORE,
            parent=self._store_folder.reference,
            summary=self._store_summary,
            info=vim.host.VmfsDatastoreInfo(
                name=DATASTORE,
                url=f"ds:///vmfs/volumes/{DATASTORE}/",
                freeSpace=1 << 40,
                maxFileSize=1 << 46,
            ),
        )
        self._datacenter.properties["datastore"] = [self.datastore.reference]
        self._cluster = ManagedObject(
            registry,
            vim.ClusterComputeResource,
            "domain-c8",
            name="Cluster0",
            parent=self._host_folder.reference,
            host=lambda: [self.host.reference],
        )
        self.host = ManagedObject(
            registry,
            vim.HostSystem,
            "host-10",
            name="esx01.lab.example",
            parent=self._cluster.reference,
            datastore=[self.datastore.reference],
        )

    def _folder(self, moid: str, name: str, children: Any) -> ManagedObject:
        return ManagedObject(self.registry, vim.Folder, moid, name=name, childEntity=children)

    def _store_summary(self) -> Any:
        return make(
            vim.Datastore.Summary,
            datastore=self.datastore.reference,
            name=DATASTORE,
            url=f"ds:///vmfs/volumes/{DATASTORE}/",
            capacity=2 << 40,
            freeSpace=1 << 40,
            accessible=True,
            type=self.datastore_type,
        )
