# SPDX-License-Identifier: Apache-2.0
"""Where a VM is: its ESXi host, and the datastores that its snapshots grow on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from sendense_agent.vsphere.disks import moid
from sendense_agent.vsphere.session import Session


@dataclass(frozen=True)
class Place:
    """A host or a datastore."""

    identity: str
    """Managed object ID with the vCenter's: the same for all jobs."""
    name: str


@dataclass(frozen=True)
class Space:
    """How full a datastore is."""

    name: str
    free_bytes: int
    capacity_bytes: int
    accessible: bool


def datastores_of(devices: Iterable[Any]) -> list[Any]:
    """The datastores that a hardware list's disks are on, each once: deltas grow beside their disks."""
    found = {}
    for device in devices:
        store = getattr(getattr(device, "backing", None), "datastore", None)
        if isinstance(device, vim.vm.device.VirtualDisk) and store is not None:
            found[moid(store)] = store
    return [found[each] for each in sorted(found)]


async def place(session: Session, reference: Any) -> Place:
    """A host or datastore by its name."""
    found = await session.properties(reference, "name")
    return Place(f"{session.vcenter_uuid}/{moid(reference)}", str(found.get("name") or moid(reference)))


async def host_of(session: Session, machine: Any) -> Place | None:
    """The host that a VM is registered at now; None: vSphere does not say."""
    host = (await session.properties(machine, "runtime.host")).get("runtime.host")
    return None if host is None else await place(session, host)


async def space_on(session: Session, datastore: Any) -> Space:
    """Asks the host to look anew where that is allowed; vCenter's own number may be minutes old."""
    name = moid(datastore)
    await session.read(f"refreshing datastore {name}", lambda: _refresh(datastore))
    summary = (await session.properties(datastore, "summary")).get("summary")
    return Space(
        name=str(summary.name) if summary is not None else name,
        free_bytes=int(summary.freeSpace or 0) if summary is not None else 0,
        capacity_bytes=int(summary.capacity or 0) if summary is not None else 0,
        accessible=summary is not None and bool(summary.accessible),
    )


def _refresh(datastore: Any) -> None:
    try:
        datastore.RefreshDatastore()
    except vim.fault.NotAuthenticated:
        raise  # which is a matter of the session
    except vmodl.MethodFault:
        return  # not allowed or not possible: what is known must do
