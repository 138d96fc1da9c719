# SPDX-License-Identifier: Apache-2.0
"""One datacenter with a cluster of hosts and its datastores, as a tree of folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyVmomi import vim

from sendense_lab.vcenter.changed_areas import AreaSettings
from sendense_lab.vcenter.datastore import Datastore, DatastoreSpec
from sendense_lab.vcenter.objects import ManagedObject, Registry

if TYPE_CHECKING:
    from sendense_lab.vcenter.machine import Machine

T = TypeVar("T")

DATACENTER, DATASTORE, HOST = "DC0", "datastore1", "esx01.lab.example"
_MOST_SNAPSHOTS = 32


class Datacenter:
    """Where the VMs are, and how it behaves."""

    def __init__(
        self,
        registry: Registry,
        files: Path,
        hosts: Sequence[str] = (HOST,),
        datastores: Sequence[DatastoreSpec] = (DatastoreSpec(DATASTORE),),
    ) -> None:
        """A datacenter without VMs.

        Args:
            registry: for its objects.
            files: what is on the first datastore; the others are beside it, in `datastores/NAME`.
            hosts: names of its ESXi hosts, at least one.
            datastores: at least one.
        """
        self.registry = registry
        self.machines: list[Machine] = []
        self.areas = AreaSettings()
        """How QueryChangedDiskAreas answers."""
        self.quiesce_fails = False
        """Whether guests cannot be quiesced."""
        self.snapshot_limit = _MOST_SNAPSHOTS
        """Snapshots of one VM, at most; one more is TooManySnapshotLevels."""
        self.consolidation_seconds = 0.0
        """So long after a removal a VM says that its disks need consolidation."""
        self.shared_disks_refuse_snapshots = False
        """Whether a running VM with shared disks cannot be snapshot at all, instead of without them."""

        self._datacenter: ManagedObject
        self._cluster: ManagedObject
        self.hosts: dict[str, ManagedObject]
        self.root = self._folder("group-d1", "Datacenters", lambda: [self._datacenter.reference])
        self.vm_folder = self._folder("group-v3", "vm", lambda: [each.reference for each in self.machines])
        self._host_folder = self._folder("group-h4", "host", lambda: [self._cluster.reference])
        self._store_folder = self._folder(
            "group-s5", "datastore", lambda: [each.reference for each in self.datastores.values()]
        )
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
            datastore=lambda: [each.reference for each in self.datastores.values()],
        )
        for folder in (self.vm_folder, self._host_folder, self._store_folder, self._network_folder):
            folder.properties["parent"] = self._datacenter.reference
        self.datastores: dict[str, Datastore] = {}
        for number, spec in enumerate(datastores):
            directory = files.parent / "datastores" / spec.name if number else files
            made = Datastore(registry, f"datastore-{11 + number}", spec, directory)
            made.properties["parent"] = self._store_folder.reference
            self.datastores[spec.name] = made
        self._cluster = ManagedObject(
            registry,
            vim.ClusterComputeResource,
            "domain-c8",
            name="Cluster0",
            parent=self._host_folder.reference,
            host=lambda: [each.reference for each in self.hosts.values()],
        )
        self.hosts = {
            name: ManagedObject(
                registry,
                vim.HostSystem,
                f"host-{10 + 100 * number}",
                name=name,
                parent=self._cluster.reference,
                datastore=[each.reference for each in self.datastores.values()],
            )
            for number, name in enumerate(hosts)
        }

    @property
    def datastore_type(self) -> str:
        """What the first datastore says it is, as "vsan"."""
        return next(iter(self.datastores.values())).type

    @datastore_type.setter
    def datastore_type(self, kind: str) -> None:
        next(iter(self.datastores.values())).type = kind

    @property
    def free_bytes(self) -> int:
        """What the first datastore says is free."""
        return next(iter(self.datastores.values())).free_bytes

    @free_bytes.setter
    def free_bytes(self, free: int) -> None:
        next(iter(self.datastores.values())).free_bytes = free

    def datastore(self, name: str = "") -> Datastore:
        """One by its name, or the first; ValueError."""
        return _named(self.datastores, name, "datastore")

    def host(self, name: str = "") -> ManagedObject:
        """One by its name, or the first; ValueError."""
        return _named(self.hosts, name, "host")

    def _folder(self, moid: str, name: str, children: Any) -> ManagedObject:
        return ManagedObject(self.registry, vim.Folder, moid, name=name, childEntity=children)


def _named(known: Mapping[str, T], name: str, what: str) -> T:
    if name and name not in known:
        raise ValueError(f"there is no {what} {name}; there are {', '.join(known)}")
    return known[name] if name else next(iter(known.values()))
