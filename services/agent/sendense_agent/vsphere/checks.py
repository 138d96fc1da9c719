# SPDX-License-Identifier: Apache-2.0
"""What would keep a backup of one VM from working, or from working well. Reads, and touches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from sendense.agent.v1.agent_service_pb2 import (
    SEVERITY_ERROR,
    SEVERITY_OK,
    SEVERITY_WARNING,
    MachineFinding,
    Severity,
)
from sendense_agent.domain.limits import GIB, Limits
from sendense_agent.vsphere import places
from sendense_agent.vsphere.datastore_files import datastore_types
from sendense_agent.vsphere.disks import VirtualDisk, disks_of
from sendense_agent.vsphere.machine import describe, find_machine
from sendense_agent.vsphere.session import Session
from sendense_common.errors import SendenseError

PRIVILEGES = (
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.Config.ChangeTracking",
    "VirtualMachine.Provisioning.DiskRandomRead",
)
"""Of the user on the VM."""
DATASTORE_PRIVILEGES = ("Datastore.Browse",)
"""Of the user on each datastore of its disks."""
_OLDEST_VERSION = 7  # changed block tracking began with it
_PATHS = (
    "config.version",
    "config.changeTrackingEnabled",
    "config.hardware.device",
    "capability.changeTrackingSupported",
    "guest.toolsRunningStatus",
    "guest.toolsVersionStatus2",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.powerState",
    "snapshot",
)
_WHY_UNPROTECTED = {
    "independent": "Make the disk dependent, or back it up from within the guest.",
    "physical_rdm": "Map it in virtual mode, or back it up from within the guest.",
    "shared_bus": "Back it up from within the guest that uses it.",
    "unsupported_backing": "Move it to a virtual disk of another kind.",
}


@dataclass(frozen=True)
class Facts:
    """What vSphere says of a VM."""

    properties: dict[str, Any]
    disks: list[VirtualDisk]
    missing_privileges: list[str]
    spaces: list[places.Space]
    privileges_unknown: str = ""
    """Why nobody knows which privileges are missing."""

    @property
    def powered_on(self) -> bool:
        """Whether a guest runs."""
        return bool(self.properties.get("runtime.powerState") == "poweredOn")

    def snapshots(self) -> list[Any]:
        """All that there are."""
        info = self.properties.get("snapshot")
        found, pending = [], list(info.rootSnapshotList) if info else []
        while pending:
            tree = pending.pop()
            found.append(tree)
            pending.extend(tree.childSnapshotList or [])
        return found


async def check_machine(
    session: Session, instance_uuid: str, name: str, *, hub_id: str, limits: Limits, vddk: bool
) -> list[MachineFinding]:
    """Looks at one VM.

    Args:
        session: that a backup would have, too.
        instance_uuid: of the VM.
        name: for messages.
        hub_id: whose snapshots are told from others.
        limits: of this site.
        vddk: whether VMware's library can be used here.

    Raises:
        SendenseError: VM_NOT_FOUND, VSPHERE_FAULT, and what any call may.
    """
    machine = (await find_machine(session, instance_uuid, name)).reference
    properties = await session.properties(machine, *_PATHS)
    devices = properties.get("config.hardware.device") or []
    stores = places.datastores_of(devices)
    missing, unknown = [], ""
    try:
        missing = await _missing(session, machine, stores)
    except SendenseError as error:
        unknown = error.message
    facts = Facts(
        properties,
        list(disks_of(devices, await datastore_types(session, devices))),
        missing,
        [await places.space_on(session, store) for store in stores],
        unknown,
    )
    return list(judge(facts, hub_id=hub_id, limits=limits, vddk=vddk))


async def _missing(session: Session, machine: Any, stores: list[Any]) -> list[str]:
    """Names of privileges that the user has not, each with where."""
    asks: list[tuple[Any, tuple[str, ...], str]] = [(machine, PRIVILEGES, "the VM")]
    asks += [
        (store, DATASTORE_PRIVILEGES, f"datastore {(await places.place(session, store)).name}")
        for store in stores
    ]
    found = []
    for entity, wanted, where in asks:

        def ask(entity: Any = entity, wanted: tuple[str, ...] = wanted) -> list[bool]:
            manager = session.content.authorizationManager
            return list(manager.HasPrivilegeOnEntity(entity, session.key, list(wanted)))

        answers = await session.read("asking for privileges", ask)
        found += [f"{each} on {where}" for each, has in zip(wanted, answers, strict=True) if not has]
    return found


def judge(facts: Facts, *, hub_id: str, limits: Limits, vddk: bool) -> Iterator[MachineFinding]:
    """What the facts mean for a backup."""
    yield _power(facts)
    yield _privileges(facts)
    yield _tracking(facts)
    yield _snapshots(facts, hub_id)
    yield _consolidation(facts)
    yield from _disks(facts, vddk=vddk)
    yield from _devices(facts)
    yield from _guest(facts)
    for space in facts.spaces:
        yield _space(space, limits)


def _power(facts: Facts) -> MachineFinding:
    connection = str(facts.properties.get("runtime.connectionState") or "connected")
    if connection != "connected":
        remedy = "See the vCenter: a VM must be connected for a snapshot."
        return _finding("power", SEVERITY_ERROR, f"the VM is {connection}", remedy)
    state = str(facts.properties.get("runtime.powerState") or "unknown").removeprefix("powered").lower()
    return _finding("power", SEVERITY_OK, f"is {state}")


def _privileges(facts: Facts) -> MachineFinding:
    name = "privileges"
    if facts.privileges_unknown:
        return _finding(name, SEVERITY_WARNING, f"could not be asked for: {facts.privileges_unknown}")
    if facts.missing_privileges:
        return _finding(
            name,
            SEVERITY_ERROR,
            f"the user has not: {', '.join(facts.missing_privileges)}",
            "Give the user these privileges, in a role of its own.",
        )
    count = len(PRIVILEGES) + len(DATASTORE_PRIVILEGES)
    return _finding(name, SEVERITY_OK, f"the user has all {count} that a backup needs")


def _tracking(facts: Facts) -> MachineFinding:
    name = "changed_block_tracking"
    if facts.properties.get("config.changeTrackingEnabled"):
        return _finding(name, SEVERITY_OK, "is on")
    if not facts.properties.get("capability.changeTrackingSupported", True):
        return _finding(
            name,
            SEVERITY_WARNING,
            "is off, and this VM cannot have it: every backup is a full",
            f"Bring the VM to hardware version {_OLDEST_VERSION} or later.",
        )
    if facts.snapshots():
        return _finding(
            name,
            SEVERITY_WARNING,
            "is off, and cannot be turned on while the VM has snapshots: every backup is a full",
            "Remove the snapshots; the next backup turns it on.",
        )
    later = "" if facts.powered_on else ", and it begins when the VM is switched on"
    return _finding(name, SEVERITY_OK, f"is off; the first backup turns it on{later}")


def _snapshots(facts: Facts, hub_id: str) -> MachineFinding:
    mark = describe(hub_id, "")
    found = facts.snapshots()
    ours = [each.name for each in found if (each.description or "").startswith(mark)]
    others = [each.name for each in found if not (each.description or "").startswith(mark)]
    if not found:
        return _finding("snapshots", SEVERITY_OK, "there are none")
    words = [f"{len(ours)} of this hub ({', '.join(ours)})"] if ours else []
    words += [f"{len(others)} of others ({', '.join(others)})"] if others else []
    remedy = "Remove those that nobody needs: they grow, and slow the VM down." if others else ""
    if ours:
        remedy = f"Of this hub: a backup runs now, or the next one removes what is left. {remedy}".strip()
    return _finding("snapshots", SEVERITY_WARNING, " and ".join(words), remedy)


def _consolidation(facts: Facts) -> MachineFinding:
    if facts.properties.get("runtime.consolidationNeeded"):
        return _finding(
            "consolidation",
            SEVERITY_ERROR,
            "vSphere says that the VM's disks need it",
            "Consolidate the VM's disks in the vSphere client.",
        )
    return _finding("consolidation", SEVERITY_OK, "is not needed")


def _disks(facts: Facts, *, vddk: bool) -> Iterator[MachineFinding]:
    if all(disk.unprotectable_reason for disk in facts.disks):
        yield _finding(
            "disks", SEVERITY_ERROR, "there is none that a snapshot can protect", "See the lines below."
        )
    for disk in facts.disks:
        name, words = f"disk.{disk.key}", f"{disk.label}, {_size(disk.capacity_bytes)}"
        if disk.unprotectable_reason:
            reason = disk.unprotectable_reason.replace("_", " ")
            remedy = _WHY_UNPROTECTED.get(disk.unprotectable_reason, "")
            yield _finding(name, SEVERITY_WARNING, f"{words}: is not protected: {reason}", remedy)
        elif disk.vddk_reason and not vddk:
            yield _finding(
                name,
                SEVERITY_ERROR,
                f"{words}: needs VMware's library (VDDK): {disk.vddk_reason}",
                "Remove the VM's snapshots if it has any; else set up VDDK at the site's agent.",
            )
        elif disk.vddk_reason:
            yield _finding(name, SEVERITY_OK, f"{words}: is read with VDDK: {disk.vddk_reason}")
        else:
            yield _finding(name, SEVERITY_OK, f"{words}: can be read")


def _devices(facts: Facts) -> Iterator[MachineFinding]:
    devices = facts.properties.get("config.hardware.device") or []
    if any(isinstance(each, vim.vm.device.VirtualTPM) for each in devices):
        yield _finding(
            "virtual_tpm",
            SEVERITY_WARNING,
            "there is one: what it seals opens only with the vCenter's key provider",
            "Back up the key provider, and keep the guest's recovery keys.",
        )
    else:
        yield _finding("virtual_tpm", SEVERITY_OK, "there is none")
    version = str(facts.properties.get("config.version") or "")
    number = version.removeprefix("vmx-")
    if number.isdecimal() and int(number) < _OLDEST_VERSION:
        yield _finding(
            "hardware_version",
            SEVERITY_WARNING,
            f"{version} is too old for changed block tracking: every backup is a full",
            f"Bring the VM to hardware version {_OLDEST_VERSION} or later.",
        )
    else:
        yield _finding("hardware_version", SEVERITY_OK, version or "is not known")


def _guest(facts: Facts) -> Iterator[MachineFinding]:
    if not facts.powered_on:
        yield _finding("tools", SEVERITY_OK, "do not matter: no guest runs")
        yield _finding("quiesce", SEVERITY_OK, "is not needed: no guest runs")
    elif facts.properties.get("guest.toolsRunningStatus") == "guestToolsRunning":
        yield _finding("tools", SEVERITY_OK, "VMware Tools run in the guest")
        yield _finding("quiesce", SEVERITY_OK, "is possible, as far as can be told without a snapshot")
    else:
        absent = facts.properties.get("guest.toolsVersionStatus2") == "guestToolsNotInstalled"
        state = "are not installed" if absent else "do not run in the guest"
        yield _finding("tools", SEVERITY_WARNING, f"VMware Tools {state}", "Install and start them.")
        yield _finding(
            "quiesce",
            SEVERITY_WARNING,
            "is not possible: snapshots are crash-consistent, and `--quiesce require` fails",
            "It needs VMware Tools in the guest.",
        )


def _space(space: places.Space, limits: Limits) -> MachineFinding:
    name, floor = f"datastore.{space.name}", limits.floor(space.capacity_bytes)
    words = f"{_size(space.free_bytes)} free of {_size(space.capacity_bytes)}, floor {_size(floor)}"
    if not space.accessible:
        return _finding(name, SEVERITY_ERROR, "is not accessible", "See the vCenter.")
    if space.free_bytes < floor:
        remedy = (
            "Make room there, or lower the floor: "
            "`sendense-agent configure --state DIR --site SITE --hub HOST:PORT --hub-key LINE "
            "--floor-gib GIB`."
        )
        return _finding(name, SEVERITY_ERROR, f"{words}: a backup is refused", remedy)
    if space.free_bytes < 2 * floor:
        return _finding(
            name, SEVERITY_WARNING, words, "Make room there: below the floor, running backups are stopped."
        )
    return _finding(name, SEVERITY_OK, words)


def _size(count_bytes: int) -> str:
    return f"{count_bytes / GIB:.1f} GiB"


def _finding(name: str, severity: Severity.ValueType, finding: str, remedy: str = "") -> MachineFinding:
    return MachineFinding(name=name, severity=severity, finding=finding, remedy=remedy)
