# SPDX-License-Identifier: Apache-2.0
"""One VM: what is known of it before a backup, and making its snapshot."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from sendense.agent.v1 import backup_pb2
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import datastore_files, tasks
from sendense_agent.vsphere.disks import VirtualDisk, disks_of
from sendense_agent.vsphere.faults import QUIESCE_FAULTS, translate
from sendense_agent.vsphere.names import shown
from sendense_agent.vsphere.session import Session
from sendense_agent.vsphere.snapshot import Snapshot
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_MEND_TOOLS = "Look at VMware Tools in the guest, or use --quiesce try."
_SNAPSHOT_WITHIN_S = 1800.0
_PATIENCE_S = 1800.0
_RECONFIGURE_WITHIN_S = 300.0
_ASK_FOR_TASKS_EVERY_S = 1.0
_RUNNING = (vim.TaskInfo.State.queued, vim.TaskInfo.State.running)
_PATHS = (
    "name",
    "config.instanceUuid",
    "config.changeTrackingEnabled",
    "config.hardware.device",
    "config.files.vmPathName",
    "config.extraConfig",
    "capability.changeTrackingSupported",
    "guest.toolsRunningStatus",
    "runtime.powerState",
    "snapshot",
)


@dataclass(frozen=True)
class Preflight:
    """What can be protected."""

    eligible: list[VirtualDisk]
    skipped: list[VirtualDisk]
    """Each with its `unprotectable_reason`."""


class Machine:
    """One VM; made by `find_machine`."""

    def __init__(self, session: Session, reference: Any) -> None:
        self._session = session
        self._reference = reference
        self._facts: dict[str, Any] = {}
        self._datastore_types: dict[str, str] = {}

    @property
    def reference(self) -> Any:
        """How vSphere names it."""
        return self._reference

    async def refresh(self) -> None:
        """Reads it anew.

        Raises:
            SendenseError: VSPHERE_FAULT when vSphere does not know its configuration.
        """
        facts = await self._session.properties(self._reference, *_PATHS)
        devices = facts.get("config.hardware.device")
        if devices is None or "config.instanceUuid" not in facts:
            name = shown(facts.get("name", "without a name"))
            raise SendenseError(
                Reason.REASON_VSPHERE_FAULT,
                f"vCenter {self._session.name} does not know the configuration of VM {name}",
                remedy="It may be orphaned, or on a host that is disconnected: see the vCenter.",
                vm=name,
            )
        self._datastore_types = await datastore_files.datastore_types(self._session, devices)
        self._facts = facts

    @property
    def devices(self) -> list[Any]:
        """Its hardware list."""
        return list(self._facts["config.hardware.device"])

    @property
    def name(self) -> str:
        """As vSphere shows it."""
        return shown(str(self._facts["name"]))

    @property
    def instance_uuid(self) -> str:
        """Its identity."""
        return str(self._facts["config.instanceUuid"])

    @property
    def powered_on(self) -> bool:
        """Whether a guest runs."""
        return bool(self._facts.get("runtime.powerState") == vim.VirtualMachine.PowerState.poweredOn)

    @property
    def tools_running(self) -> bool:
        """Whether VMware Tools answer in the guest: without them, nothing quiesces it."""
        return bool(self._facts.get("guest.toolsRunningStatus") == "guestToolsRunning")

    @property
    def changed_block_tracking(self) -> bool:
        """Whether it is on."""
        return bool(self._facts.get("config.changeTrackingEnabled"))

    def snapshot_trees(self) -> Iterator[Any]:
        """All snapshots that exist."""
        info = self._facts.get("snapshot")
        pending = list(info.rootSnapshotList) if info else []
        while pending:
            tree = pending.pop()
            yield tree
            pending.extend(tree.childSnapshotList or [])

    def preflight(self, frozen: Sequence[VirtualDisk] | None = None) -> Preflight:
        """Which disks can be protected.

        Args:
            frozen: disks of a snapshot of ours that exists already. Those count then: the VM's own list shows
                what was made on top of them.

        Raises:
            SendenseError: VM_HAS_NO_PROTECTABLE_DISK; DISK_NEEDS_VDDK; DISK_MISMATCH when two disks
                cannot be told apart.
        """
        disks = list(disks_of(self._facts["config.hardware.device"], self._datastore_types))
        for key, count in Counter(disk.key for disk in disks).items():
            if count > 1:
                raise SendenseError(
                    Reason.REASON_DISK_MISMATCH,
                    f"VM {self.name} has {count} disks with the device key {key}",
                    vm=self.name,
                    disk=key,
                )
        skipped = [disk for disk in disks if disk.unprotectable_reason]
        eligible = [disk for disk in frozen or disks if not disk.unprotectable_reason]
        if not eligible:
            reasons = ", ".join(f"{disk.label}: {disk.unprotectable_reason}" for disk in skipped)
            raise SendenseError(
                Reason.REASON_VM_HAS_NO_PROTECTABLE_DISK,
                f"VM {self.name} has no disk that a snapshot can protect ({reasons or 'no disks'})",
                vm=self.name,
            )
        for disk in eligible:
            if disk.vddk_reason and not self._session.vddk:
                raise SendenseError(
                    Reason.REASON_DISK_NEEDS_VDDK,
                    f"{disk.label} of VM {self.name} needs VMware's library (VDDK): {disk.vddk_reason}",
                    remedy="Remove the VM's other snapshots if it has any; for disks of other kinds, set "
                    "VDDK up at the site: "
                    "`sendense-agent configure --state DIR --site SITE --hub HOST:PORT --hub-key LINE "
                    "--vddk-libdir DIR`.",
                    vm=self.name,
                    disk=disk.key,
                )
        return Preflight(eligible, skipped)

    async def enable_changed_block_tracking(self) -> bool:
        """Turns it on where possible; True when this call did it. Takes effect at the next snapshot."""
        if self.changed_block_tracking or not self._can_track or any(True for _ in self.snapshot_trees()):
            return False
        await self._track(on=True)
        return True

    async def reset_changed_block_tracking(self, hub_id: str, reset_id: str) -> None:
        """Has vSphere forget what it tracked: off, a snapshot that is removed at once, and on again.

        The snapshot is what makes ESXi notice that it is off. Tracking begins anew at the next one.

        Raises:
            SendenseError: RESET_REFUSED, with nothing changed; and those of snapshots.
        """
        refusal = ""
        if not self._can_track:
            refusal = f"VM {self.name} cannot track changes"
        elif names := [shown(tree.name) for tree in self.snapshot_trees()]:
            refusal = f"VM {self.name} has snapshots ({', '.join(names)})"
        if refusal:
            raise SendenseError(
                Reason.REASON_RESET_REFUSED,
                f"changed block tracking is not reset: {refusal}",
                remedy="Remove the VM's snapshots; without any, it needs a newer hardware version.",
                vm=self.name,
            )
        await self._track(on=False)
        snapshot = await self.create_snapshot(hub_id, reset_id, backup_pb2.QUIESCE_MODE_OFF)
        await snapshot.remove()
        await self._track(on=True)

    @property
    def _can_track(self) -> bool:
        return bool(self._facts.get("capability.changeTrackingSupported", True))

    async def _track(self, *, on: bool) -> None:
        doing = f"turning {'on' if on else 'off'} changed block tracking of VM {self.name}"
        spec = vim.vm.ConfigSpec(changeTrackingEnabled=on)
        await self._task(
            doing, lambda: self._reference.ReconfigVM_Task(spec), timeout_s=_RECONFIGURE_WITHIN_S
        )

    async def create_snapshot(
        self, hub_id: str, job_id: str, quiesce: backup_pb2.QuiesceMode.ValueType
    ) -> Snapshot:
        """Freezes all disks; waits first for whatever else goes on with the VM.

        Raises:
            SendenseError: SNAPSHOT_FAILED, QUIESCE_FAILED, DEADLINE_EXCEEDED, VCENTER_NO_PERMISSION.
        """
        warnings: list[tuple[str, str]] = []
        result = "not_requested"
        wanted = quiesce != backup_pb2.QUIESCE_MODE_OFF and self.powered_on
        if wanted and not self.tools_running:
            # vSphere takes the snapshot all the same, and says nothing of what it left out.
            words = f"VMware Tools do not run in VM {self.name}, so nothing can quiesce it"
            if quiesce == backup_pb2.QUIESCE_MODE_REQUIRE:
                raise SendenseError(
                    Reason.REASON_QUIESCE_FAILED, words, remedy=_MEND_TOOLS, retryable=False, vm=self.name
                )
            warnings.append(("quiesce_fell_back", f"The snapshot is crash-consistent: {words}"))
            wanted, result = False, "crash_consistent"
        try:
            reference = await self._snapshot(hub_id, job_id, quiesce=wanted)
            if wanted:
                result = "quiesced"
        except QUIESCE_FAULTS as fault:
            error = translate(fault, doing=f"quiescing VM {self.name}", vcenter=self._session.name)
            if quiesce == backup_pb2.QUIESCE_MODE_REQUIRE:
                error.reason = Reason.REASON_QUIESCE_FAILED
                error.remedy = _MEND_TOOLS
                raise error from fault
            warnings.append(("quiesce_fell_back", f"The snapshot is crash-consistent: {error.message}"))
            result = "crash_consistent"
            reference = await self._snapshot(hub_id, job_id, quiesce=False)
        snapshot = Snapshot(self._session, self._reference, reference, self.name)
        snapshot.quiesce_result = result
        snapshot.warnings = warnings
        await snapshot.load()
        return snapshot

    async def _snapshot(self, hub_id: str, job_id: str, *, quiesce: bool) -> Any:
        """Quiescing faults come out as they are."""
        doing = f"making a snapshot of VM {self.name}"
        try:
            return await tasks.run(
                self._session,
                lambda: self._reference.CreateSnapshot_Task(
                    f"sendense-{job_id[:8]}",
                    describe(hub_id, job_id),
                    False,
                    quiesce,
                ),
                doing=doing,
                timeout_s=_SNAPSHOT_WITHIN_S,
                patience_s=_PATIENCE_S,
            )
        except QUIESCE_FAULTS:
            raise
        except vmodl.MethodFault as fault:
            error = translate(fault, doing=doing, vcenter=self._session.name)
            if error.reason == Reason.REASON_VSPHERE_FAULT:
                error.reason = Reason.REASON_SNAPSHOT_FAILED
            error.metadata["vm"] = self.name
            raise error from fault

    async def own_snapshots(self, hub_id: str, job_ids: set[str]) -> list[Snapshot]:
        """Snapshots that this hub's named jobs made, newest first. Nobody else's, whatever its name.

        One that vSphere is still making is waited for: who asked for it may be gone.

        Raises:
            SendenseError: DEADLINE_EXCEEDED when it does not end.
        """
        wanted = {describe(hub_id, job_id) for job_id in job_ids}
        await self.snapshot_tasks_ended()
        await self.refresh()
        found = [tree for tree in self.snapshot_trees() if tree.description in wanted]
        found.sort(key=lambda tree: tree.id, reverse=True)
        return [self._found(tree) for tree in found]

    def _found(self, tree: Any) -> Snapshot:
        snapshot = Snapshot(self._session, self._reference, tree.snapshot, self.name)
        snapshot.created_at = tree.createTime
        if tree.quiesced:
            snapshot.quiesce_result = "quiesced"
        elif tree.state == vim.VirtualMachine.PowerState.poweredOn:
            snapshot.quiesce_result = "crash_consistent"
        return snapshot

    async def snapshot_tasks_ended(self) -> None:
        """Returns when vSphere neither makes nor removes a snapshot of this VM, whoever asked for it.

        Raises:
            SendenseError: DEADLINE_EXCEEDED when it does not end.
        """
        deadline = asyncio.get_running_loop().time() + _PATIENCE_S
        while await self._snapshot_task_runs():
            if asyncio.get_running_loop().time() >= deadline:
                raise SendenseError(
                    Reason.REASON_DEADLINE_EXCEEDED,
                    f"vSphere still makes or removes a snapshot of VM {self.name} after {_PATIENCE_S:.0f} s",
                    vm=self.name,
                )
            await asyncio.sleep(_ASK_FOR_TASKS_EVERY_S)

    async def _snapshot_task_runs(self) -> bool:
        recent = (await self._session.properties(self._reference, "recentTask")).get("recentTask") or []
        for task in recent:
            try:
                found = await self._session.properties(task, "info.descriptionId", "info.state")
            except SendenseError as error:
                if error.metadata.get("fault") != "vmodl.fault.ManagedObjectNotFound":
                    raise
                continue  # vSphere has forgotten it since
            kind = str(found.get("info.descriptionId") or "").lower()
            if "snapshot" in kind and found.get("info.state") in _RUNNING:
                return True
        return False

    async def nvram(self) -> bytes:
        """Its NVRAM file; empty when there is none."""
        for option in self._facts.get("config.extraConfig") or []:
            if option.key == "nvram" and option.value:
                file = datastore_files.sibling(self._facts["config.files.vmPathName"], option.value)
                url = await datastore_files.address(self._session, self._reference, file)
                return await datastore_files.fetch(self._session, url, "the NVRAM file") or b""
        return b""

    async def _task(self, doing: str, start: Any, *, timeout_s: float) -> Any:
        try:
            return await tasks.run(
                self._session, start, doing=doing, timeout_s=timeout_s, patience_s=_PATIENCE_S
            )
        except vmodl.MethodFault as fault:
            raise translate(fault, doing=doing, vcenter=self._session.name) from fault


def describe(hub_id: str, job_id: str) -> str:
    """The description by which a snapshot is known as ours; never matched in part."""
    return f"Sendense backup; remove only by Sendense. hub={hub_id} job={job_id}"


async def find_machine(session: Session, instance_uuid: str, name: str) -> Machine:
    """One VM by its instance UUID.

    Raises:
        SendenseError: VM_NOT_FOUND.
    """
    search = session.content.searchIndex
    reference = await session.read(
        f"looking for VM {name}",
        lambda: search.FindByUuid(None, instance_uuid, True, True),
    )
    if reference is None:
        raise SendenseError(
            Reason.REASON_VM_NOT_FOUND,
            f"vCenter {session.name} has no VM {name} (instance UUID {instance_uuid}) any more",
            remedy="`sendense vm list` shows what is there.",
            vm=name,
        )
    machine = Machine(session, reference)
    await machine.refresh()
    return machine
