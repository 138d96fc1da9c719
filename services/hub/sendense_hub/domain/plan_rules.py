# SPDX-License-Identifier: Apache-2.0
"""What the hub checks in an agent's plan before it makes a file: a wrong plan restores a wrong disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import point_service_pb2 as points
from sendense_common.errors import SendenseError

SECTOR_BYTES = 512
NONE_EARLIER: Mapping[int, job_pb2.JobDisk] = MappingProxyType({})
"""Disks of earlier attempts when there were none."""
# What a layer needs besides data: tables, ledger, point.json.
_OVERHEAD_BYTES = 64 * 1024 * 1024


def check_form(plan: agent.BackupPlan) -> None:
    """Refuses a plan that cannot even be shown or kept: a device key twice, a configuration that is not JSON.

    Raises:
        SendenseError: DISK_MISMATCH.
    """
    keys = [disk.key for disk in plan.disks] + [disk.key for disk in plan.skipped_disks]
    if len(set(keys)) != len(keys):
        raise _mismatch(f"device keys occur twice in the plan: {keys}")
    if plan.vm_config_json:
        try:
            json.loads(plan.vm_config_json)
        except ValueError as error:
            raise _mismatch(f"the VM's configuration in the plan is not JSON: {error}") from error


def check_plan(
    plan: agent.BackupPlan,
    *,
    vcenter_uuid: str,
    vm_instance_uuid: str,
    previous: Mapping[int, points.PointDisk],
    incremental_required: bool,
) -> None:
    """Refuses a plan that does not fit what is known.

    Args:
        plan: of the agent, of the right form.
        vcenter_uuid: of the vCenter the previous points came from; empty when it is not known yet.
        vm_instance_uuid: of the VM the job is for.
        previous: the newest complete disk by device key.
        incremental_required: no disk may be a full.

    Raises:
        SendenseError: DISK_MISMATCH, VM_HAS_NO_PROTECTABLE_DISK or INCREMENTAL_NOT_POSSIBLE.
    """
    if plan.vm_instance_uuid != vm_instance_uuid:
        raise _mismatch(f"the agent planned VM {plan.vm_instance_uuid}, the job is for {vm_instance_uuid}")
    if vcenter_uuid and plan.vcenter_uuid != vcenter_uuid:
        raise _mismatch(
            f"the vCenter says that it is {plan.vcenter_uuid}; the points of this VM come from {vcenter_uuid}"
        )
    if not plan.disks:
        raise SendenseError(
            Reason.REASON_VM_HAS_NO_PROTECTABLE_DISK,
            f"VM {plan.vm_name} has no disk that a snapshot can protect",
            remedy="Look at the reasons per disk: `sendense job show JOB`.",
            vm=plan.vm_name,
        )
    identities = [disk.disk_object_id for disk in plan.disks if disk.disk_object_id]
    if len(set(identities)) != len(identities):
        raise _mismatch(f"disk object IDs occur twice in the plan: {identities}")
    for disk in plan.disks:
        if disk.capacity_bytes <= 0 or disk.capacity_bytes % SECTOR_BYTES:
            raise _mismatch(f"{_named(disk)} has {disk.capacity_bytes} bytes, not whole 512-byte sectors")
        if disk.planned_read_bytes < 0 or disk.changed_bytes < 0:
            raise _mismatch(f"{_named(disk)} is planned with a negative number of bytes")
        if disk.mode in (agent.DISK_MODE_INCREMENTAL, agent.DISK_MODE_COMPARED):
            _check_built_on(disk, previous.get(disk.key))
        elif disk.mode != agent.DISK_MODE_FULL:
            raise _mismatch(f"{_named(disk)} has no mode")
        if incremental_required and disk.mode != agent.DISK_MODE_INCREMENTAL:
            raise SendenseError(
                Reason.REASON_INCREMENTAL_NOT_POSSIBLE,
                f"{_named(disk)} of VM {plan.vm_name} would have to be read whole: {disk.mode_reason}",
                remedy="Start it with --mode auto or --mode full.",
                disk=disk.key,
                cause=disk.mode_reason,
            )


def check_trust(plan: agent.BackupPlan, untrusted: Collection[int]) -> None:
    """Refuses a plan that believes changed block tracking which has left something out before.

    Raises:
        SendenseError: DISK_MISMATCH.
    """
    for disk in plan.disks:
        if disk.key in untrusted and (disk.mode == agent.DISK_MODE_INCREMENTAL or not disk.whole):
            raise _mismatch(
                f"{_named(disk)} is not to be read as a whole, though its change tracking is not trusted"
            )


def check_space(
    disks: Iterable[agent.PlannedDisk], free_bytes: int, earlier: Mapping[int, job_pb2.JobDisk] = NONE_EARLIER
) -> None:
    """Refuses what cannot fit: all that will be read, were it all data, but for what is stored already.

    Of a compared disk hardly anything is stored as a rule; how much, nobody knows before it was read.

    Args:
        disks: of the plan.
        free_bytes: in the repository.
        earlier: what earlier attempts did, by device key.

    Raises:
        SendenseError: REPOSITORY_FULL.
    """
    needed = _OVERHEAD_BYTES
    for disk in disks:
        if disk.mode != agent.DISK_MODE_COMPARED:
            before = earlier.get(disk.key, job_pb2.JobDisk())
            stored_bytes = before.copied_bytes - before.recopied_bytes if disk.keeps_layer else 0
            needed += max(0, disk.planned_read_bytes - stored_bytes)
    if needed > free_bytes:
        raise SendenseError(
            Reason.REASON_REPOSITORY_FULL,
            f"up to {needed} bytes will be written and {free_bytes} are free",
            remedy="Delete points that are no longer needed, or make the repository larger.",
        )


def check_copied(job: job_pb2.Job) -> None:
    """Refuses to complete a point before each of its disks was copied, and all of it.

    Raises:
        SendenseError: INTERNAL; the agent has said that all is copied.
    """
    for disk in job.disks:
        if disk.state == job_pb2.DISK_STATE_SKIPPED:
            continue
        if disk.state != job_pb2.DISK_STATE_COPIED:
            raise _not_copied(disk, "is not")
        if disk.read_bytes < disk.planned_read_bytes:
            raise _not_copied(disk, f"has read {disk.read_bytes} of {disk.planned_read_bytes} bytes")


def _not_copied(disk: job_pb2.JobDisk, what: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_INTERNAL,
        f"the agent said that all is copied, but disk {disk.key} ({disk.label}) {what}",
        remedy="Look at the log of the agent; please report it.",
        disk=disk.key,
    )


def _check_built_on(disk: agent.PlannedDisk, before: points.PointDisk | None) -> None:
    """An incremental or a compared disk, with the point that it is built on."""
    incremental = disk.mode == agent.DISK_MODE_INCREMENTAL
    planned = "planned as an incremental" if incremental else "to be compared"
    if before is None:
        raise _mismatch(f"{_named(disk)} is {planned} and has no complete point")
    if before.capacity_bytes != disk.capacity_bytes:
        raise _mismatch(
            f"{_named(disk)} is {planned}, but had {before.capacity_bytes} bytes "
            f"and has {disk.capacity_bytes}"
        )
    if before.disk_object_id != disk.disk_object_id:
        raise _mismatch(f"{_named(disk)} is {disk.disk_object_id} and was {before.disk_object_id}")
    if incremental and not before.change_id:
        raise _mismatch(f"{_named(disk)} is planned as an incremental of a point without a change ID")


def _named(disk: agent.PlannedDisk) -> str:
    return f"disk {disk.key} ({disk.label})"


def _mismatch(message: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_DISK_MISMATCH, message, remedy="Nothing was copied. Look at the log of the agent."
    )
