# SPDX-License-Identifier: Apache-2.0
"""What the hub adds to what an agent finds about a VM: its jobs, and the space here."""

from __future__ import annotations

from collections.abc import Sequence

from sendense.agent.v1 import agent_service_pb2 as agent
from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import system_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.repository import Repository

_GIB = 1024**3
_STATUS = {
    agent.SEVERITY_OK: pb.CHECK_STATUS_OK,
    agent.SEVERITY_WARNING: pb.CHECK_STATUS_WARNING,
    agent.SEVERITY_ERROR: pb.CHECK_STATUS_ERROR,
}


def from_agent(found: agent.MachineFinding) -> pb.Check:
    """A finding of the agent's. What this hub does not know is not taken for good."""
    return pb.Check(
        name=found.name,
        status=_STATUS.get(found.severity, pb.CHECK_STATUS_WARNING),
        finding=found.finding,
        remedy=found.remedy,
    )


def of_jobs(active: Sequence[job_pb2.Job]) -> pb.Check:
    """Whether a backup of the VM could start now."""
    if not active:
        return pb.Check(name="jobs", status=pb.CHECK_STATUS_OK, finding="none is queued or runs")
    return pb.Check(
        name="jobs",
        status=pb.CHECK_STATUS_WARNING,
        finding=f"job {active[0].job_id} has not ended yet",
        remedy=f"Watch it with `sendense job watch {active[0].job_id[:8]}`; one at a time is all there is.",
    )


def of_repository(repository: Repository, machine: agent.VirtualMachine) -> pb.Check:
    """Whether a full of the VM would fit here for certain. Blocks."""
    name = f"repository.{repository.name}"
    try:
        free_bytes = repository.space().free_bytes
    except SendenseError as error:
        return pb.Check(name=name, status=pb.CHECK_STATUS_ERROR, finding=error.message, remedy=error.remedy)
    needed = sum(disk.capacity_bytes for disk in machine.disks if not disk.unprotectable_reason)
    words = f"{free_bytes / _GIB:.1f} GiB free, the disks have {needed / _GIB:.1f} GiB"
    if free_bytes < needed:
        return pb.Check(
            name=name,
            status=pb.CHECK_STATUS_WARNING,
            finding=f"{words}: a full may not fit, if the disks are in use so far",
            remedy="Make room in the repository, or use another one.",
        )
    return pb.Check(name=name, status=pb.CHECK_STATUS_OK, finding=words)
