# SPDX-License-Identifier: Apache-2.0
"""Full, incremental or compared: whether what changed since a disk's last point can be asked for and trusted.

Wrong in one direction costs time, wrong in the other costs data. A disk that is certainly the one of its last
point, whose changes cannot be told, is compared with that point: all of it is read. Whatever else is not
certain is a full.
"""

from __future__ import annotations

from dataclasses import dataclass

from sendense.agent.v1 import backup_pb2 as pb


@dataclass(frozen=True)
class DiskNow:
    """A disk as the snapshot's own hardware list has it."""

    key: int
    disk_object_id: str
    backing_uuid: str
    """Empty: the backing has none."""
    capacity_bytes: int
    change_id: str
    """In this snapshot; empty: changes are not tracked."""


@dataclass(frozen=True)
class DiskMode:
    """How a disk is copied."""

    mode: pb.DiskMode.ValueType
    reason: str
    """Why it is no incremental (see PlannedDisk.mode_reason); empty for one."""


INCREMENTAL = DiskMode(pb.DISK_MODE_INCREMENTAL, "")


def full(reason: str) -> DiskMode:
    """A full, because of `reason`."""
    return DiskMode(pb.DISK_MODE_FULL, reason)


def compared(reason: str) -> DiskMode:
    """All is read and compared with the last point, because of `reason`."""
    return DiskMode(pb.DISK_MODE_COMPARED, reason)


def decide(
    previous: pb.PreviousDisk | None,
    now: DiskNow,
    *,
    tracking_just_enabled: bool,
    trusted: bool = True,
    mistrusted: str = "",
) -> DiskMode:
    """How one disk is copied; no other disk of the VM has a say in it.

    Args:
        previous: the disk's last complete point in the same repository; None: there is none.
        now: the disk in the snapshot that will be read.
        tracking_just_enabled: changed block tracking was turned on by this very attempt.
        trusted: it has left nothing out so far, as far as is known.
        mistrusted: why an earlier attempt of the same job compared it; what could not be told then is not
            believed now.
    """
    if previous is None:
        return full("first_backup")
    if not same_disk(previous, now):
        return full("identity_changed")
    if previous.capacity_bytes != now.capacity_bytes:
        return full("capacity_changed")
    if not trusted:
        return compared("cbt_not_trusted")
    if mistrusted:
        return compared(mistrusted)
    if tracking_just_enabled:
        return compared("cbt_just_enabled")
    if not previous.change_id or not now.change_id:
        return compared("change_id_missing")
    if not continues(previous.change_id, now.change_id):
        return compared("change_id_rejected")
    return INCREMENTAL


def same_disk(previous: pb.PreviousDisk | pb.ResumableDisk, now: DiskNow) -> bool:
    """By device key and object ID, and by the backing's UUID where both are known. Never by a name."""
    if previous.key != now.key or previous.disk_object_id != now.disk_object_id:
        return False
    known = bool(previous.backing_uuid and now.backing_uuid)
    if not known and not now.disk_object_id:
        return False  # a key alone is reused by the next disk in the same slot
    return not known or previous.backing_uuid == now.backing_uuid


def continues(before: str, now: str) -> bool:
    """Whether both IDs ("UUID/sequence") are of one tracking that has not gone back in time."""
    before_tracking, _, before_sequence = before.rpartition("/")
    now_tracking, _, now_sequence = now.rpartition("/")
    if not before_tracking or before_tracking != now_tracking:
        return False
    if not all(_is_number(each) for each in (before_sequence, now_sequence)):
        return False
    return int(before_sequence) <= int(now_sequence)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()
