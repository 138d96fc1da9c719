# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a VM: disks frozen, change tracking noted, deltas merged away at the end."""

from __future__ import annotations

import datetime
import time
import uuid
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from sendense_lab.vcenter.changed_areas import Frozen
from sendense_lab.vcenter.objects import ManagedObject
from sendense_lab.vcenter.soap import make

if TYPE_CHECKING:
    from sendense_lab.vcenter.machine import Machine


class Snapshot(ManagedObject):
    """One snapshot; made by the VM."""

    def __init__(self, machine: Machine, name: str, description: str, number: int, *, quiesced: bool) -> None:
        registry = machine.registry
        super().__init__(
            registry,
            vim.vm.Snapshot,
            f"snapshot-{registry.number()}",
            vm=machine.reference,
            childSnapshot=[],
        )
        self.machine = machine
        self.frozen: dict[int, Frozen] = {}
        self.description = description or ""
        self._disks = [disk for disk in machine.disks if disk.in_snapshots]
        for disk in self._disks:
            # Tracking begins, and ends, when a running VM is stunned, as now.
            if not machine.tracking:
                disk.tracking_id = ""
            if machine.tracking and (disk.tracking_id or machine.power == "poweredOn"):
                files = disk.files
                disk.tracking_id = disk.tracking_id or str(uuid.uuid4())
                files.epoch += 1
                self.frozen[disk.key] = Frozen(
                    disk.tracking_id, files.epoch, files.allocated(), dict(files.written_in)
                )
            if machine.hold_frozen is not None:
                disk.keep(machine.hold_frozen / f"{self.moid}-{disk.key}.raw")
            disk.files.push(number)
        self.properties["config"] = lambda: machine.config(self._devices())
        self.node = make(
            vim.vm.SnapshotTree,
            snapshot=self.reference,
            vm=machine.reference,
            name=name,
            description=self.description,
            id=number,
            createTime=datetime.datetime.now(datetime.UTC),
            state=machine.power,
            quiesced=quiesced,
            replaySupported=False,
        )

    def _devices(self) -> list[Any]:
        """Its disks, with the files that they are made of now: an older snapshot may have been merged."""
        deltas = self.machine.snapshots.index(self)
        devices = []
        for disk in self._disks:
            frozen = self.frozen.get(disk.key)
            change_id = f"{frozen.tracking_id}/{frozen.epoch}" if frozen else None
            devices.append(disk.device(deltas, change_id))
        return devices

    def RemoveSnapshot_Task(self, context: Any, removeChildren: bool, consolidate: Any) -> Any:
        """Merges its deltas away."""
        return self.registry.start_task(
            self.machine, "RemoveSnapshot_Task", lambda: self.merge(children=removeChildren)
        )

    def merge(self, *, children: bool = False) -> None:
        """Removes it, and those that were taken after it if `children`."""
        machine = self.machine
        index = machine.snapshots.index(self)
        for snapshot in reversed(machine.snapshots[index:] if children else [self]):
            place = machine.snapshots.index(snapshot)
            for disk in machine.disks:
                if disk.in_snapshots:
                    disk.files.pop(place)
            machine.snapshots.remove(snapshot)
            snapshot.remove()
        machine.consolidating_until_s = time.monotonic() + machine.datacenter.consolidation_seconds
        self.registry.changed()
