# SPDX-License-Identifier: Apache-2.0
"""Virtual machines, their disks and their snapshots."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyVmomi import vim

from sendense_lab.vcenter.disk import DiskFiles, areas
from sendense_lab.vcenter.inventory import Datacenter
from sendense_lab.vcenter.objects import ManagedObject
from sendense_lab.vcenter.soap import invalid_argument, make

_DEVICE = vim.vm.device
_CHANGE_ID = re.compile(r"(.+)/(\d+)")
_NVRAM_BYTES = 8684


@dataclass(frozen=True)
class DiskSpec:
    """How a disk is made."""

    capacity_bytes: int
    """A multiple of 512."""
    image: str = ""
    """Raw image whose bytes it begins with; empty: all zeroes."""
    unit_number: int | None = None
    """None: its place in the list."""
    disk_mode: str = "persistent"
    """ "independent_persistent": vSphere leaves it out of snapshots."""
    key_id: str = ""
    """Not empty: an encrypted disk."""


class Disk:
    """One virtual disk."""

    def __init__(self, number: int, spec: DiskSpec, files: DiskFiles, datastore: ManagedObject) -> None:
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


class Machine(ManagedObject):
    """One VM."""

    def __init__(self, datacenter: Datacenter, name: str, disks: list[DiskSpec]) -> None:
        """Makes its files: disks, NVRAM."""
        registry = datacenter.registry
        super().__init__(
            registry,
            vim.VirtualMachine,
            f"vm-{registry.number()}",
            name=name,
            config=self.config,
            runtime=self._runtime,
            snapshot=self._snapshot_info,
            summary=self._summary,
            parent=datacenter.vm_folder.reference,
            datastore=[datacenter.datastore.reference],
            capability=make(vim.vm.Capability, changeTrackingSupported=True),
            guest=make(vim.vm.GuestInfo, toolsStatus="toolsOk", toolsRunningStatus="guestToolsRunning"),
            recentTask=[],
        )
        self.datacenter = datacenter
        self.instance_uuid = str(uuid.uuid4())
        self.bios_uuid = str(uuid.uuid4())
        self.tracking = False
        self.power = "poweredOn"
        self.consolidation_needed = False
        self.snapshots: list[Snapshot] = []
        self.hold_frozen: Path | None = None
        """Where a copy of every disk is kept at each snapshot; None: nowhere."""
        self._numbers = itertools.count(1)
        self._folder = f"{name}_{self.moid}" if (datacenter.files / name).exists() else name
        path = datacenter.files / self._folder
        path.mkdir(parents=True)
        self.nvram = uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes * (_NVRAM_BYTES // 16)
        (path / f"{name}.nvram").write_bytes(self.nvram)
        self.disks: list[Disk] = []
        for number, spec in enumerate(disks):
            file = f"{name}_{number}" if number else name
            files = DiskFiles(path, file, spec.capacity_bytes)
            if spec.image:
                _fill(files.base, Path(spec.image), spec.capacity_bytes)
            self.disks.append(Disk(number, spec, files, datacenter.datastore))
        datacenter.machines.append(self)

    def disk(self, key: int) -> Disk:
        """One disk by its device key; KeyError."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        raise KeyError(f"VM {self.get('name')} has no disk {key}")

    def files(self) -> list[str]:
        """Names of all delta files that exist."""
        return [name for disk in self.disks for name in disk.files.delta_files()]

    # --- properties ---

    def config(self, devices: list[Any] | None = None) -> Any:
        """config, with the disks as they are now, or as they were in a snapshot."""
        store, name = self.datacenter.datastore.get("name"), self.get("name")
        if devices is None:
            devices = [
                disk.device(
                    len(disk.files.deltas),
                    f"{disk.tracking_id}/{disk.files.epoch}" if disk.tracking_id else None,
                )
                for disk in self.disks
            ]
        controller = _DEVICE.ParaVirtualSCSIController(
            key=1000,
            busNumber=0,
            sharedBus="noSharing",
            deviceInfo=vim.Description(label="SCSI controller 0", summary="VMware paravirtual SCSI"),
        )
        adapter = _DEVICE.VirtualVmxnet3(
            key=4000,
            macAddress="00:50:56:00:00:01",
            addressType="assigned",
            deviceInfo=vim.Description(label="Network adapter 1", summary="VM Network"),
            backing=_DEVICE.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
        )
        return make(
            vim.vm.ConfigInfo,
            name=name,
            uuid=self.bios_uuid,
            instanceUuid=self.instance_uuid,
            guestId="debian12_64Guest",
            guestFullName="Debian GNU/Linux 12 (64-bit)",
            version="vmx-20",
            firmware="efi",
            template=False,
            changeVersion="1",
            changeTrackingEnabled=self.tracking,
            files=vim.vm.FileInfo(
                vmPathName=f"[{store}] {self._folder}/{name}.vmx",
                snapshotDirectory=f"[{store}] {self._folder}/",
            ),
            extraConfig=[vim.option.OptionValue(key="nvram", value=f"{name}.nvram")],
            hardware=vim.vm.VirtualHardware(numCPU=2, memoryMB=2048, device=[controller, adapter, *devices]),
        )

    def _runtime(self) -> Any:
        return make(
            vim.vm.RuntimeInfo,
            connectionState="connected",
            powerState=self.power,
            host=self.datacenter.host.reference,
            consolidationNeeded=self.consolidation_needed,
            toolsInstallerMounted=False,
        )

    def _summary(self) -> Any:
        return make(
            vim.vm.Summary,
            vm=self.reference,
            runtime=self._runtime(),
            overallStatus="green",
            config=make(
                vim.vm.Summary.ConfigSummary,
                name=self.get("name"),
                template=False,
                uuid=self.bios_uuid,
                instanceUuid=self.instance_uuid,
                guestFullName="Debian GNU/Linux 12 (64-bit)",
            ),
        )

    def _snapshot_info(self) -> Any:
        tree = None
        for snapshot in reversed(self.snapshots):
            snapshot.node.childSnapshotList = [tree] if tree else []
            tree = snapshot.node
        if tree is None:
            return None
        return vim.vm.SnapshotInfo(currentSnapshot=self.snapshots[-1].reference, rootSnapshotList=[tree])

    # --- methods of the API ---

    def ReconfigVM_Task(self, context: Any, spec: Any) -> Any:
        """Only change tracking can be changed."""

        def run() -> None:
            if spec.changeTrackingEnabled is not None:
                self.tracking = spec.changeTrackingEnabled
                if not self.tracking:
                    for disk in self.disks:
                        disk.tracking_id = ""
            self.registry.changed()

        return self.registry.start_task(self, "ReconfigVM_Task", run)

    def CreateSnapshot_Task(
        self,
        context: Any,
        name: str,
        description: str,
        memory: bool,
        quiesce: bool,
    ) -> Any:
        """Freezes all disks that take part."""
        return self.registry.start_task(
            self, "CreateSnapshot_Task", lambda: self._take(name, description, quiesce)
        )

    def CreateSnapshotEx_Task(
        self,
        context: Any,
        name: str,
        description: str,
        memory: bool,
        quiesceSpec: Any,
    ) -> Any:
        """The newer form."""
        return self.CreateSnapshot_Task(context, name, description, memory, quiesceSpec is not None)

    def _take(self, name: str, description: str, quiesce: bool) -> Any:
        if quiesce and self.datacenter.quiesce_fails:
            raise make(
                vim.fault.ApplicationQuiesceFault,
                msg="An error occurred while quiescing the virtual machine. "
                "See the virtual machine's event log for details.",
            )
        snapshot = Snapshot(self, name, description, next(self._numbers), quiesced=quiesce)
        self.snapshots.append(snapshot)
        self.registry.changed()
        return snapshot.reference

    def QueryChangedDiskAreas(
        self,
        context: Any,
        snapshot: Any,
        deviceKey: int,
        startOffset: int,
        changeId: str,
    ) -> Any:
        """Areas that changed since `changeId`, or that are in use for "*", one page from `startOffset` on."""
        disk = next((each for each in self.disks if each.key == deviceKey), None)
        if disk is None:
            raise invalid_argument("deviceKey")
        capacity = disk.files.capacity_bytes
        if not 0 <= startOffset < capacity:
            raise invalid_argument("startOffset")
        frozen = self.registry.find(snapshot).frozen.get(deviceKey) if snapshot else None  # type: ignore[attr-defined]
        if frozen is None:
            raise self._file_fault(disk)
        if changeId == "*":
            if not self.datacenter.used_areas:
                raise self._file_fault(disk)
            granules = frozen.allocated
        else:
            granules = self._since(disk, frozen, changeId)
        found = areas(granules, capacity, startOffset)
        end = capacity
        if len(found) > self.datacenter.areas_per_page:
            found = found[: self.datacenter.areas_per_page]
            end = sum(found[-1])
        info = vim.VirtualMachine.DiskChangeInfo
        return info(
            startOffset=startOffset,
            length=end - startOffset,
            changedArea=[info.DiskChangeExtent(start=start, length=length) for start, length in found],
        )

    def _since(self, disk: Disk, frozen: Frozen, change_id: str) -> set[int]:
        parts = _CHANGE_ID.fullmatch(change_id)
        if parts is None:
            raise invalid_argument("changeId")
        if parts[1] != frozen.tracking_id or int(parts[2]) > frozen.epoch:
            raise self._file_fault(disk)
        return {granule for granule, epoch in frozen.written_in.items() if epoch >= int(parts[2])}

    def _file_fault(self, disk: Disk) -> Any:
        file = f"[{self.datacenter.datastore.get('name')}] {self._folder}/{disk.files.name}.vmdk"
        return vim.fault.FileFault(file=file, msg=f"Error caused by file {file}")


@dataclass(frozen=True)
class Frozen:
    """What change tracking knew of a disk at a snapshot."""

    tracking_id: str
    epoch: int
    allocated: set[int]
    written_in: dict[int, int]


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
        devices = []
        for disk in machine.disks:
            if not disk.in_snapshots:
                continue
            deltas = len(disk.files.deltas)
            change_id = None
            if machine.tracking:
                files = disk.files
                disk.tracking_id = disk.tracking_id or str(uuid.uuid4())
                files.epoch += 1
                change_id = f"{disk.tracking_id}/{files.epoch}"
                self.frozen[disk.key] = Frozen(
                    disk.tracking_id, files.epoch, files.allocated(), dict(files.written_in)
                )
            devices.append(disk.device(deltas, change_id))
            if machine.hold_frozen is not None:
                _keep(disk, machine.hold_frozen / f"{self.moid}-{disk.key}.raw")
            disk.files.push(number)
        self.properties["config"] = machine.config(devices)
        self.node = make(
            vim.vm.SnapshotTree,
            snapshot=self.reference,
            vm=machine.reference,
            name=name,
            description=self.description,
            id=number,
            state=machine.power,
            quiesced=quiesced,
            replaySupported=False,
        )

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
        self.registry.changed()


def _fill(base: Path, image: Path, capacity_bytes: int) -> None:
    """Copies an image sparsely; the file keeps the disk's size."""
    if image.stat().st_size > capacity_bytes:
        raise ValueError(f"{image} is larger than the disk")
    _copy_sparse(image, base)
    with base.open("r+b") as file:
        file.truncate(capacity_bytes)


def _keep(disk: Disk, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not disk.files.deltas:
        _copy_sparse(disk.files.base, target)
        return
    with target.open("wb") as file:
        file.truncate(disk.files.capacity_bytes)
        for start, length in areas(disk.files.allocated(), disk.files.capacity_bytes):
            file.seek(start)
            file.write(disk.files.read(start, length))


def _copy_sparse(source: Path, target: Path) -> None:
    cp = shutil.which("cp") or "cp"
    subprocess.run([cp, "--sparse=always", "--reflink=auto", str(source), str(target)], check=True)
