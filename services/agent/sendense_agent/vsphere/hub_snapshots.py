# SPDX-License-Identifier: Apache-2.0
"""All snapshots that one hub's jobs made, of all VMs of a vCenter, in few calls however many VMs it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pyVmomi import vim

from sendense.agent.v1.agent_service_pb2 import FoundSnapshot
from sendense_agent.vsphere.disks import moid
from sendense_agent.vsphere.inventory import all_of
from sendense_agent.vsphere.machine import describe
from sendense_agent.vsphere.names import shown
from sendense_agent.vsphere.session import Session

_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DOING = "looking for snapshots of this hub"


async def hub_snapshots(session: Session, hub_id: str) -> list[FoundSnapshot]:
    """Those whose description is exactly what this hub writes; nobody else's, whatever its name."""
    with_any = await session.read(_DOING, lambda: all_of(session, vim.VirtualMachine, ["snapshot"]))
    found = []
    for machine, facts in with_any:
        ours = list(_of_hub(facts.get("snapshot"), hub_id))
        if not ours:
            continue
        known = await session.properties(machine, "name", "config.instanceUuid")
        if not known.get("config.instanceUuid"):
            continue  # a VM that vSphere has lost sight of: it is found again when it is back
        found += [
            FoundSnapshot(
                job_id=job_id,
                vm_instance_uuid=known["config.instanceUuid"],
                vm_name=shown(str(known["name"])),
                snapshot_moref=moid(tree.snapshot),
            )
            for job_id, tree in ours
        ]
    return found


def job_of(description: str, hub_id: str) -> str:
    """The job of this hub that a description names; empty: it is none of ours."""
    # The job's ID is the last word: the hub's may look like one too. What counts is the whole text.
    job_id = description.rpartition("=")[2]
    return job_id if _JOB.fullmatch(job_id) and describe(hub_id, job_id) == description else ""


def _of_hub(info: Any, hub_id: str) -> Iterator[tuple[str, Any]]:
    pending = list(info.rootSnapshotList) if info else []
    while pending:
        tree = pending.pop()
        if job_id := job_of(tree.description or "", hub_id):
            yield job_id, tree
        pending.extend(tree.childSnapshotList or [])
