# SPDX-License-Identifier: Apache-2.0
"""All VMs of a vCenter."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from sendense.agent.v1.agent_service_pb2 import VirtualDisk, VirtualMachine
from sendense_agent.vsphere.disks import disks_of, moid
from sendense_agent.vsphere.names import shown
from sendense_agent.vsphere.session import Session

_PC = vmodl.query.PropertyCollector
_VM_PATHS = [
    "name",
    "parent",
    "config.instanceUuid",
    "config.template",
    "config.changeTrackingEnabled",
    "config.guestFullName",
    "config.hardware.device",
    "runtime.powerState",
    "runtime.host",
]

Found = list[tuple[Any, dict[str, Any]]]


async def virtual_machines(session: Session) -> list[VirtualMachine]:
    """All VMs, without templates, by name. Folders are paths: a slash within a name stays escaped."""
    doing = "listing VMs"
    machines = await session.read(doing, lambda: all_of(session, vim.VirtualMachine, _VM_PATHS))
    hosts = await session.read(doing, lambda: all_of(session, vim.HostSystem, ["name"]))
    folders = await session.read(
        doing,
        lambda: (
            all_of(session, vim.Folder, ["name", "parent"])
            + all_of(session, vim.Datacenter, ["name", "parent"])
        ),
    )
    host_names = {moid(reference): found["name"] for reference, found in hosts}
    tree = {moid(reference): found for reference, found in folders}
    listed = [
        _message(reference, found, host_names, tree)
        for reference, found in machines
        if found.get("config.instanceUuid") and not found.get("config.template")
    ]
    return sorted(listed, key=lambda machine: (machine.name, machine.moref))


def all_of(session: Session, kind: Any, paths: list[str]) -> Found:
    """All objects of a type, by a container view. Blocks."""
    content = session.content
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        into = _PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
        spec = _PC.FilterSpec(
            objectSet=[_PC.ObjectSpec(obj=view, skip=True, selectSet=[into])],
            propSet=[_PC.PropertySpec(type=kind, pathSet=paths)],
        )
        return list(session.pages(spec))
    finally:
        view.DestroyView()


def _message(
    reference: Any, found: dict[str, Any], hosts: dict[str, str], tree: dict[str, dict[str, Any]]
) -> VirtualMachine:
    host = found.get("runtime.host")
    return VirtualMachine(
        instance_uuid=found["config.instanceUuid"],
        moref=moid(reference),
        name=shown(found["name"]),
        folder=_path(found.get("parent"), tree),
        power_state=str(found.get("runtime.powerState") or ""),
        host=hosts.get(moid(host), "") if host else "",
        guest=found.get("config.guestFullName") or "",
        changed_block_tracking=bool(found.get("config.changeTrackingEnabled")),
        disks=[
            VirtualDisk(
                key=disk.key,
                label=disk.label,
                capacity_bytes=disk.capacity_bytes,
                disk_object_id=disk.disk_object_id,
                backing_uuid=disk.backing_uuid,
                unprotectable_reason=disk.unprotectable_reason,
            )
            for disk in disks_of(found.get("config.hardware.device") or [])
        ],
    )


def _path(folder: Any, tree: dict[str, dict[str, Any]]) -> str:
    names: list[str] = []
    while folder is not None and (found := tree.get(moid(folder))) is not None:
        names.append(found["name"])
        folder = found.get("parent")
    return "/" + "/".join(reversed(names))
