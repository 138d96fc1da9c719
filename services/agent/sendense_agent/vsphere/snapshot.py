# SPDX-License-Identifier: Apache-2.0
"""Our snapshot of a VM: its disks, what changed since another one, and its end."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from typing import Any

from pyVmomi import vim, vmodl
from pyVmomi.VmomiJSONEncoder import VmomiJSONEncoder

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.extents import Extents
from sendense_agent.vsphere import datastore_files, tasks
from sendense_agent.vsphere.disks import VirtualDisk, disks_of
from sendense_agent.vsphere.faults import translate
from sendense_agent.vsphere.session import Session
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_REMOVE_WITHIN_S = 6 * 3600.0
_PATIENCE_S = 1800.0
_REMOVE_AGAIN_AFTER_S = (2.0, 10.0)
_CONSOLIDATED_WITHIN_S = 30.0
_ALL = "*"
_GONE = "vmodl.fault.ManagedObjectNotFound"
# Faults of the question and answers that cannot be right; not: no connection, no session, no right to ask.
_ONLY_OF_THE_ANSWER = {Reason.REASON_VSPHERE_FAULT, Reason.REASON_CBT_INCONSISTENT}


# What another try to remove may not meet again; nothing is lost by trying, for gone is fine too.
_MAY_PASS = {Reason.REASON_VSPHERE_FAULT, Reason.REASON_VCENTER_UNREACHABLE}


class ChangeIdRejectedError(Exception):
    """vSphere cannot say what changed since a change ID: the disk must be read in full."""


class Snapshot:
    """One snapshot; made by `Machine`."""

    def __init__(self, session: Session, machine: Any, reference: Any, vm_name: str) -> None:
        self._session = session
        self._machine = machine
        self._reference = reference
        self._vm_name = vm_name
        self.quiesce_result = "not_requested"
        self.warnings: list[tuple[str, str]] = []
        """(code, message)."""
        self.disks: list[VirtualDisk] = []
        """From the snapshot's own hardware list."""
        self.created_at: datetime.datetime | None = None
        """By vCenter's clock; None: it was made just now."""

    async def age_s(self) -> float:
        """How long it exists, by vCenter's clock, which nobody at the site can set back for us."""
        if self.created_at is None:
            return 0.0
        return max(0.0, (await self._session.now() - self.created_at).total_seconds())

    @property
    def moref(self) -> str:
        """Its managed object ID."""
        return str(self._reference._moId)  # noqa: SLF001 - pyvmomi's name for it

    @property
    def machine_moref(self) -> str:
        """The managed object ID of its VM."""
        return str(self._machine._moId)  # noqa: SLF001

    async def load(self) -> None:
        """Reads its hardware list.

        Raises:
            SendenseError: SNAPSHOT_FAILED when there is none, SNAPSHOT_LOST.
        """
        try:
            found = await self._session.properties(self._reference, "config.hardware.device")
        except SendenseError as error:
            raise self._lost_or(error) from error
        devices = found.get("config.hardware.device")
        if devices is None:
            raise SendenseError(
                Reason.REASON_SNAPSHOT_FAILED,
                f"vCenter {self._session.name} shows no disks of the snapshot of VM {self._vm_name}",
                vm=self._vm_name,
            )
        self.disks = list(disks_of(devices, await datastore_files.datastore_types(self._session, devices)))

    async def allocated(self, disk: VirtualDisk) -> Extents | None:
        """Areas in use; None where the datastore cannot tell: then all is in use, which is always true."""
        try:
            return await self._areas(disk, _ALL)
        except ChangeIdRejectedError:
            return None
        except SendenseError as error:
            if error.reason not in _ONLY_OF_THE_ANSWER:
                raise
            log.warning("%s of VM %s is read as a whole: %s", disk.label, self._vm_name, error)
            return None

    async def changed_since(self, disk: VirtualDisk, change_id: str) -> Extents:
        """Areas that were written since `change_id`.

        Raises:
            ChangeIdRejectedError: vSphere cannot tell.
            SendenseError: CBT_INCONSISTENT when the answer cannot be right, SNAPSHOT_LOST.
        """
        return await self._areas(disk, change_id)

    async def _areas(self, disk: VirtualDisk, change_id: str) -> Extents:
        """Pages until the disk's end; a page without an area is only an empty page."""
        result = Extents()
        position = 0
        while position < disk.capacity_bytes:
            page = await self._page(disk, change_id, position)
            if page.startOffset != position or page.length <= 0:
                raise self._inconsistent(
                    disk,
                    f"asked from byte {position}, it answers {page.length} bytes from {page.startOffset}",
                )
            end = position + page.length
            if end > disk.capacity_bytes:
                raise self._inconsistent(disk, f"an answer reaches to byte {end}, beyond the disk's end")
            for area in page.changedArea or []:
                if area.start < position or area.length <= 0 or area.start + area.length > end:
                    raise self._inconsistent(
                        disk, f"an area of {area.length} bytes at {area.start} lies outside its page"
                    )
                try:
                    result.append(area.start, area.length)
                except ValueError as error:
                    raise self._inconsistent(disk, f"areas are not in order: {error}") from error
            position = end
        return result

    async def _page(self, disk: VirtualDisk, change_id: str, position: int) -> Any:
        doing = f"asking for changed areas of {disk.label} of VM {self._vm_name}"
        faults = (vim.fault.FileFault, vmodl.fault.InvalidArgument)
        try:
            return await self._session.read(
                doing,
                lambda: self._machine.QueryChangedDiskAreas(self._reference, disk.key, position, change_id),
                expecting=faults,
            )
        except SendenseError as error:
            raise self._lost_or(error) from error
        except faults as fault:
            if isinstance(fault, vmodl.fault.InvalidArgument) and fault.invalidProperty not in {
                None,
                "changeId",
            }:
                raise translate(fault, doing=doing, vcenter=self._session.name) from fault
            raise ChangeIdRejectedError(f"{type(fault).__name__}: {fault.msg}") from fault

    async def source_url(self, disk: VirtualDisk) -> str:
        """Where its frozen file can be read by HTTPS; DISK_NEEDS_VDDK."""
        if disk.vddk_reason:
            raise SendenseError(
                Reason.REASON_DISK_NEEDS_VDDK,
                f"{disk.label} of VM {self._vm_name} needs VMware's library (VDDK): {disk.vddk_reason}",
            )
        return await datastore_files.flat_file(
            self._session, self._machine, disk.file_name, disk.capacity_bytes
        )

    async def exists(self) -> bool:
        """Whether it is still there: while it is, its files do not change."""
        return await self._tree() is not None

    async def made_at(self) -> datetime.datetime | None:
        """When vSphere made it, by vCenter's clock; None when it is there no more."""
        if self.created_at is None and (tree := await self._tree()):
            self.created_at = tree.createTime
        return self.created_at

    async def config_json(self) -> bytes:
        """The VM's whole configuration, as this snapshot has it and vSphere gives it."""
        found = await self._session.properties(self._reference, "config")
        return json.dumps(found.get("config"), cls=VmomiJSONEncoder, sort_keys=True).encode()

    async def _tree(self) -> Any | None:
        """Its place in the VM's tree of snapshots."""
        found = await self._session.properties(self._machine, "snapshot")
        info = found.get("snapshot")
        pending = list(info.rootSnapshotList) if info else []
        while pending:
            tree = pending.pop()
            if tree.snapshot._moId == self.moref:  # noqa: SLF001
                return tree
            pending.extend(tree.childSnapshotList or [])
        return None

    async def remove(self) -> None:
        """Removes this snapshot and no other, and waits until its deltas are merged. Gone is fine too.

        Raises:
            SendenseError: it may still be there, or its deltas are.
        """
        for pause_s in _REMOVE_AGAIN_AFTER_S:
            try:
                await self._remove()
                break
            except SendenseError as error:
                if error.reason not in _MAY_PASS:
                    raise
                log.warning("%s; trying again", error)
                await asyncio.sleep(pause_s)
        else:
            await self._remove()
        await self._consolidated()

    async def _remove(self) -> None:
        doing = f"removing the snapshot of VM {self._vm_name}"
        try:
            await tasks.run(
                self._session,
                lambda: self._reference.RemoveSnapshot_Task(False, True),
                doing=doing,
                timeout_s=_REMOVE_WITHIN_S,
                patience_s=_PATIENCE_S,
            )
        except vmodl.fault.ManagedObjectNotFound:
            return
        except vmodl.MethodFault as fault:
            raise translate(fault, doing=doing, vcenter=self._session.name) from fault

    async def _consolidated(self) -> None:
        """Raises when deltas stay although no snapshot needs them: the next snapshot would go on top."""
        deadline = asyncio.get_running_loop().time() + _CONSOLIDATED_WITHIN_S
        while True:
            try:
                found = await self._session.properties(self._machine, "runtime.consolidationNeeded")
            except SendenseError as error:
                if error.metadata.get("fault") == _GONE:
                    return  # the VM itself
                raise
            if not found.get("runtime.consolidationNeeded"):
                return
            if asyncio.get_running_loop().time() >= deadline:
                raise SendenseError(
                    Reason.REASON_VSPHERE_FAULT,
                    f"the snapshot of VM {self._vm_name} is removed, but vSphere could not merge its files",
                    remedy="Consolidate the VM's disks in the vSphere client; without that the next backup "
                    "is refused.",
                    vm=self._vm_name,
                )
            await asyncio.sleep(1)

    def _lost_or(self, error: SendenseError) -> SendenseError:
        """SNAPSHOT_LOST when vSphere knows the snapshot no more; else the error itself."""
        if error.metadata.get("fault") != _GONE:
            return error
        return SendenseError(
            Reason.REASON_SNAPSHOT_LOST,
            f"somebody removed the snapshot of VM {self._vm_name} while it was used: {error.message}",
            remedy="The next attempt, or the next backup, makes a new one.",
            retryable=True,
            vm=self._vm_name,
        )

    def _inconsistent(self, disk: VirtualDisk, what: str) -> SendenseError:
        return SendenseError(
            Reason.REASON_CBT_INCONSISTENT,
            f"changed areas of {disk.label} of VM {self._vm_name} cannot be right: {what}",
            remedy="Nothing was copied. Start a full backup: `--mode full`.",
            vm=self._vm_name,
            disk=disk.key,
        )
