# SPDX-License-Identifier: Apache-2.0
"""Our snapshot of a VM: its disks, what changed since another one, and its end."""

from __future__ import annotations

import logging
from typing import Any

from pyVmomi import vim, vmodl

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
_ALL = "*"


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

    @property
    def moref(self) -> str:
        """Its managed object ID."""
        return str(self._reference._moId)  # noqa: SLF001 - pyvmomi's name for it

    async def load(self) -> None:
        """Reads its hardware list."""
        found = await self._session.properties(self._reference, "config.hardware.device")
        self.disks = list(disks_of(found["config.hardware.device"]))

    async def allocated(self, disk: VirtualDisk) -> Extents | None:
        """Areas in use; None where the datastore cannot tell."""
        try:
            return await self._areas(disk, _ALL)
        except ChangeIdRejectedError:
            return None

    async def changed_since(self, disk: VirtualDisk, change_id: str) -> Extents:
        """Areas that were written since `change_id`.

        Raises:
            ChangeIdRejectedError: vSphere cannot tell.
            SendenseError: CBT_INCONSISTENT when the answer cannot be right.
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
            return await self._session.call_expecting(
                doing,
                faults,
                lambda: self._machine.QueryChangedDiskAreas(self._reference, disk.key, position, change_id),
            )
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
        found = await self._session.properties(self._machine, "snapshot")
        info = found.get("snapshot")
        pending = list(info.rootSnapshotList) if info else []
        while pending:
            tree = pending.pop()
            if tree.snapshot._moId == self.moref:  # noqa: SLF001
                return True
            pending.extend(tree.childSnapshotList or [])
        return False

    async def remove(self) -> None:
        """Removes this snapshot and no other, and waits until its deltas are merged. Gone is fine too.

        Raises:
            SendenseError: it may still be there.
        """
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
        except SendenseError as error:
            if "ManagedObjectNotFound" in error.metadata.get("fault", ""):
                return
            raise

    def _inconsistent(self, disk: VirtualDisk, what: str) -> SendenseError:
        return SendenseError(
            Reason.REASON_CBT_INCONSISTENT,
            f"changed areas of {disk.label} of VM {self._vm_name} cannot be right: {what}",
            remedy="Nothing was copied. Start a full backup: `--mode full`.",
            vm=self._vm_name,
            disk=disk.key,
        )
