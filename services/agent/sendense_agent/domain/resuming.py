# SPDX-License-Identifier: Apache-2.0
"""What of an interrupted attempt can be used by the next one: its snapshot, and the layer of each disk."""

from __future__ import annotations

from collections.abc import Mapping

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.disk_mode import DiskNow, continues, same_disk

_ANOTHER_TRY_MAY_HELP = frozenset(
    {
        Reason.REASON_AGENT_KEYS_REPLACED,
        Reason.REASON_CLOCKS_DIFFER,
        Reason.REASON_SERVICE_UNAVAILABLE,
        Reason.REASON_SERVICE_STOPPING,
        Reason.REASON_DEADLINE_EXCEEDED,
        Reason.REASON_KEY_PROVIDER_FORBIDDEN,
        Reason.REASON_KEY_PROVIDER_UNAVAILABLE,
        Reason.REASON_VCENTER_UNREACHABLE,
        Reason.REASON_VCENTER_SESSION_LOST,
        Reason.REASON_VSPHERE_FAULT,
        Reason.REASON_SNAPSHOT_FAILED,
        Reason.REASON_TUNNEL_REFUSED,
        Reason.REASON_TUNNEL_LOST,
        Reason.REASON_LEASE_INVALID,
        Reason.REASON_LEASE_EXPIRED,
        Reason.REASON_SOURCE_READ_FAILED,
        Reason.REASON_TARGET_WRITE_FAILED,
        Reason.REASON_COPY_PROCESS_DIED,
    }
)


def another_try_may_help(reason: Reason.ValueType) -> bool:
    """Whether an attempt that failed so is interrupted, and keeps what it has; else the job has failed."""
    return reason in _ANOTHER_TRY_MAY_HELP


def why_not_again(resume: pb.ResumeFrom, moref: str, disks: Mapping[int, DiskNow]) -> str:
    """Why the snapshot that layers were written from cannot be read again; empty: it can.

    Args:
        resume: what the hub knows of it.
        moref: its managed object ID.
        disks: in it, by device key.
    """
    for begun in resume.disks:
        now = disks.get(begun.key)
        if now is None:
            return f"it lacks the disk {begun.key}"
        if not same_disk(begun, now) or begun.capacity_bytes != now.capacity_bytes:
            return f"its disk {begun.key} is another one"
        if (
            begun.eras
            and begun.eras[-1].snapshot_moref == moref
            and begun.eras[-1].change_id != now.change_id
        ):
            return f"its disk {begun.key} has another change ID"
    return ""


def changes_to_ask_for(
    begun: pb.ResumableDisk | None,
    mode: pb.DiskMode.ValueType,
    now: DiskNow,
    moref: str,
    *,
    trusted: bool = True,
) -> list[str] | None:
    """The change ID of each era of a layer whose changes must be known; empty where there are none.

    None: the layer cannot go on, and a new one is begun.

    Args:
        begun: what the hub has of the disk; None: nothing.
        mode: how it is copied now.
        now: the disk in the snapshot that is read.
        moref: the snapshot's.
        trusted: whether the disk's changed areas are believed.
    """
    if begun is None or not begun.eras or begun.mode != mode:
        return None
    if not same_disk(begun, now) or begun.capacity_bytes != now.capacity_bytes:
        return None
    asked = []
    for era in begun.eras:
        if era.snapshot_moref == moref and era.change_id == now.change_id:
            asked.append("")
        elif mode == pb.DISK_MODE_COMPARED or not trusted or not continues(era.change_id, now.change_id):
            return None
        else:
            asked.append(era.change_id)
    return asked
