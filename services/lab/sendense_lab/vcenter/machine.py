# SPDX-License-Identifier: Apache-2.0
"""Virtual machines."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from pyVmomi import vim

from sendense_lab.vcenter import changed_areas
from sendense_lab.vcenter.disk import DiskFiles
from sendense_lab.vcenter.inventory import Datacenter
from sendense_lab.vcenter.objects import ManagedObject
from sendense_lab.vcenter.snapshot import Snapshot
from sendense_lab.vcenter.soap import invalid_argument, make, now
from sendense_lab.vcenter.virtual_disk import SHARED_CONTROLLER, Disk, DiskSpec

_DEVICE = vim.vm.device
_NVRAM_BYTES = 8684


class Machine(ManagedObject):
    """One VM."""

    def __init__(
        self, datacenter: Datacenter, name: str, disks: list[DiskSpec], *, host: str = "", datastore: str = ""
    ) -> None:
        """Makes its files: disks, NVRAM.

        Args:
            datacenter: where it is.
            name: as people see it.
            disks: at least none.
            host: that it runs on; empty: the first.
            datastore: that has its files; empty: the first.
        """
        registry = datacenter.registry
        self.host = datacenter.host(host)
        self.home = datacenter.datastore(datastore)
        self.shown_name = name
        """As people see it; "name" is escaped, as vSphere's API does."""
        super().__init__(
            registry,
            vim.VirtualMachine,
            f"vm-{registry.number()}",
            name=_escaped(name),
            config=self.config,
            runtime=self._runtime,
            snapshot=self._snapshot_info,
            summary=self._summary,
            parent=datacenter.vm_folder.reference,
            datastore=self._datastores,
            capability=make(vim.vm.Capability, changeTrackingSupported=True),
            guest=self._guest,
            recentTask=[],
        )
        self.datacenter = datacenter
        self.instance_uuid = str(uuid.uuid4())
        self.bios_uuid = str(uuid.uuid4())
        self.tracking = False
        self.power = "poweredOn"
        self._made_at = now()
        self.template = False
        self.consolidation_needed = False
        self.consolidating_until_s = 0.0
        """By the monotonic clock: until when leftover deltas are being merged."""
        self.tools_running = True
        self.virtual_tpm = False
        self.hardware_version = "vmx-20"
        self.snapshots: list[Snapshot] = []
        self.hold_frozen: Path | None = None
        """Where a copy of every disk is kept at each snapshot; None: nowhere."""
        self._numbers = itertools.count(1)
        self._file_name = name.replace("/", "_")
        taken = (self.home.files / self._file_name).exists()
        self._folder = f"{self._file_name}_{self.moid}" if taken else self._file_name
        self._path = self.home.files / self._folder
        self._path.mkdir(parents=True)
        self.disks: list[Disk] = []
        try:
            self.nvram = uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes * (_NVRAM_BYTES // 16)
            (self._path / f"{self._file_name}.nvram").write_bytes(self.nvram)
            for number, spec in enumerate(disks):
                file = f"{self._file_name}_{number}" if number else self._file_name
                self.disks.append(self._new_disk(number, spec, file))
        except BaseException:
            self.remove()
            shutil.rmtree(self._path)
            raise
        datacenter.machines.append(self)

    def _new_disk(self, number: int, spec: DiskSpec, file: str) -> Disk:
        store = self.datacenter.datastore(spec.datastore) if spec.datastore else self.home
        return Disk(number, spec, DiskFiles(store.files / self._folder, file, spec.capacity_bytes), store)

    def _datastores(self) -> list[Any]:
        stores = {self.home.moid: self.home} | {disk.datastore.moid: disk.datastore for disk in self.disks}
        return [store.reference for store in stores.values()]

    def add_disk(self, spec: DiskSpec) -> Disk:
        """One more disk, with the next device key."""
        if self.snapshots:
            raise ValueError("vSphere changes no disks of a VM with snapshots")
        number = max((disk.number for disk in self.disks), default=-1) + 1
        made = self._new_disk(number, spec, f"{self._file_name}_{self.registry.number()}")
        self.disks.append(made)
        self.registry.changed()
        return made

    def remove_disk(self, key: int) -> None:
        """Takes a disk away; its files stay."""
        if self.snapshots:
            raise ValueError("vSphere changes no disks of a VM with snapshots")
        self.disks.remove(self.disk(key))
        self.registry.changed()

    def move_disk(self, key: int, datastore: str) -> None:
        """A disk moves to another datastore: its path changes; its identity and change tracking stay."""
        disk, store = self.disk(key), self.datacenter.datastore(datastore)
        disk.files.move(store.files / self._folder)
        disk.datastore = store
        self.registry.changed()

    def replace_disk(self, key: int, capacity_bytes: int) -> None:
        """Another, empty disk in the same place: device key and object ID stay, the backing is new."""
        before = self.disk(key)
        if self.snapshots:
            raise ValueError("vSphere changes no disks of a VM with snapshots")
        spec = dataclasses.replace(before.spec, capacity_bytes=capacity_bytes, image="")
        after = self._new_disk(before.number, spec, f"{self._file_name}_{self.registry.number()}")
        after.object_id = before.object_id
        self.disks[self.disks.index(before)] = after
        self.registry.changed()

    def resize_disk(self, key: int, capacity_bytes: int) -> None:
        """Makes a disk larger; its change tracking begins anew."""
        if self.snapshots:
            raise ValueError("vSphere resizes no disks of a VM with snapshots")
        disk = self.disk(key)
        disk.files.grow(capacity_bytes)
        disk.tracking_id = ""
        self.registry.changed()

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
        store, name = self.home.name, self.get("name")
        file = self._file_name
        if devices is None:
            devices = [
                disk.device(
                    len(disk.files.deltas),
                    # Not the newest snapshot's: who takes this one misses what was written since.
                    f"{disk.tracking_id}/{disk.files.epoch + 1}" if disk.tracking_id else None,
                )
                for disk in self.disks
            ]
        controller = _DEVICE.ParaVirtualSCSIController(
            key=1000,
            busNumber=0,
            sharedBus="noSharing",
            deviceInfo=vim.Description(label="SCSI controller 0", summary="VMware paravirtual SCSI"),
        )
        controllers = [controller]
        if shared := next((disk for disk in self.disks if disk.spec.shared_bus != "noSharing"), None):
            label = vim.Description(label="SCSI controller 1", summary="VMware paravirtual SCSI")
            controllers.append(
                _DEVICE.ParaVirtualSCSIController(
                    key=SHARED_CONTROLLER, busNumber=1, sharedBus=shared.spec.shared_bus, deviceInfo=label
                )
            )
        adapter = _DEVICE.VirtualVmxnet3(
            key=4000,
            macAddress="00:50:56:00:00:01",
            addressType="assigned",
            deviceInfo=vim.Description(label="Network adapter 1", summary="VM Network"),
            backing=_DEVICE.VirtualEthernetCard.NetworkBackingInfo(deviceName="VM Network"),
        )
        tpm = [_DEVICE.VirtualTPM(key=11000)] if self.virtual_tpm else []
        return make(
            vim.vm.ConfigInfo,
            name=name,
            uuid=self.bios_uuid,
            instanceUuid=self.instance_uuid,
            guestId="debian12_64Guest",
            guestFullName="Debian GNU/Linux 12 (64-bit)",
            version=self.hardware_version,
            firmware="efi",
            template=self.template,
            changeVersion="1",
            modified=self._made_at,
            changeTrackingEnabled=self.tracking,
            files=vim.vm.FileInfo(
                vmPathName=f"[{store}] {self._folder}/{file}.vmx",
                snapshotDirectory=f"[{store}] {self._folder}/",
            ),
            extraConfig=[vim.option.OptionValue(key="nvram", value=f"{file}.nvram")],
            hardware=vim.vm.VirtualHardware(
                numCPU=2, memoryMB=2048, device=[*controllers, adapter, *tpm, *devices]
            ),
        )

    def _runtime(self) -> Any:
        return make(
            vim.vm.RuntimeInfo,
            connectionState="connected",
            powerState=self.power,
            host=self.host.reference,
            consolidationNeeded=self.consolidation_needed or time.monotonic() < self.consolidating_until_s,
            toolsInstallerMounted=False,
        )

    def _guest(self) -> Any:
        running = self.tools_running and self.power == "poweredOn"
        return make(
            vim.vm.GuestInfo,
            toolsStatus="toolsOk" if running else "toolsNotRunning",
            toolsRunningStatus="guestToolsRunning" if running else "guestToolsNotRunning",
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
                template=self.template,
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

    def ConsolidateVMDisks_Task(self, context: Any) -> Any:
        """Merges what no snapshot needs."""

        def run() -> None:
            self.consolidation_needed = False

        return self.registry.start_task(self, "ConsolidateVMDisks_Task", run)

    def PowerOnVM_Task(self, context: Any, host: Any) -> Any:
        """It runs."""
        return self.registry.start_task(self, "PowerOnVM_Task", lambda: self._switch("poweredOn"))

    def PowerOffVM_Task(self, context: Any) -> Any:
        """It does not run."""
        return self.registry.start_task(self, "PowerOffVM_Task", lambda: self._switch("poweredOff"))

    def _switch(self, power: str) -> None:
        if self.power == power:
            raise make(vim.fault.InvalidPowerState, requestedState=power, existingState=power)
        self.power = power
        self.registry.changed()

    def RelocateVM_Task(self, context: Any, spec: Any, priority: Any) -> Any:
        """Disks move to other datastores."""

        def run() -> None:
            for locator in spec.disk:
                self.move_disk(locator.diskId, self.registry.find(locator.datastore).get("name"))

        return self.registry.start_task(self, "RelocateVM_Task", run)

    def _change_device(self, change: Any) -> None:
        """A disk is added, made larger or taken away; of others nothing is known."""
        disk = change.device
        if type(disk) is not _DEVICE.VirtualDisk:
            raise invalid_argument("configSpec.deviceChange")
        capacity_bytes = int(disk.capacityInBytes or 0)
        try:
            if change.operation == "add":
                self.add_disk(DiskSpec(capacity_bytes, unit_number=disk.unitNumber))
            elif change.operation == "remove":
                self.remove_disk(disk.key)
            else:
                self.resize_disk(disk.key, capacity_bytes)
        except (KeyError, ValueError) as error:
            raise vim.fault.InvalidDeviceSpec(deviceIndex=0, property="device", msg=str(error)) from error

    def ReconfigVM_Task(self, context: Any, spec: Any) -> Any:
        """Change tracking and disks can be changed."""

        def run() -> None:
            for change in spec.deviceChange:
                self._change_device(change)
            if spec.changeTrackingEnabled is not None:
                self.tracking = spec.changeTrackingEnabled
                if not self.tracking and self.power != "poweredOn":
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
        if len(self.snapshots) >= self.datacenter.snapshot_limit:
            raise vim.fault.TooManySnapshotLevels(
                msg=f"The maximum number of snapshot levels ({self.datacenter.snapshot_limit}) is reached."
            )
        shared = [disk for disk in self.disks if disk.is_shared]
        if shared and self.power == "poweredOn" and self.datacenter.shared_disks_refuse_snapshots:
            raise make(
                vim.fault.SnapshotFault,
                msg="The virtual machine is configured to use a device that prevents the snapshot operation: "
                f"{shared[0].label} is shared.",
            )
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
        taken = self.registry.find(snapshot) if snapshot is not None else None
        if not isinstance(taken, Snapshot) or taken.machine is not self:
            raise invalid_argument("snapshot")
        file = disk.descriptor
        return changed_areas.page(
            self.datacenter.areas,
            taken.frozen.get(deviceKey),
            disk.files.capacity_bytes,
            startOffset,
            changeId,
            vim.fault.FileFault(file=file, msg=f"Error caused by file {file}"),
        )


def _escaped(name: str) -> str:
    """A name as vSphere's API has it."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")
