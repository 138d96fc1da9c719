# SPDX-License-Identifier: Apache-2.0
"""Whether a disk can be copied incrementally, decided per disk and by identity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnownDisk:
    """A disk as it was at its last complete point."""

    key: int
    disk_object_id: str
    backing_uuid: str
    capacity_bytes: int
    change_id: str
    """Empty: none was usable."""


@dataclass(frozen=True)
class FrozenDisk:
    """A disk in the snapshot that will be read."""

    key: int
    disk_object_id: str
    backing_uuid: str
    capacity_bytes: int
    change_id: str


def why_full(previous: KnownDisk | None, disk: FrozenDisk, *, tracking_just_enabled: bool) -> str:
    """Why the disk must be copied in full; empty when its changes since `previous` can be asked for.

    A change ID is "UUID/number": numbers of different UUIDs have nothing to do with one another.
    """
    if previous is None:
        return "first_backup"
    if not _same_disk(previous, disk):
        return "identity_changed"
    if previous.capacity_bytes != disk.capacity_bytes:
        return "capacity_changed"
    if tracking_just_enabled:
        return "cbt_just_enabled"
    if not previous.change_id or not disk.change_id:
        return "change_id_missing"
    if previous.change_id.partition("/")[0] != disk.change_id.partition("/")[0]:
        return "change_id_rejected"
    return ""


def _same_disk(previous: KnownDisk, disk: FrozenDisk) -> bool:
    if previous.key != disk.key or previous.disk_object_id != disk.disk_object_id:
        return False
    either_unknown = not previous.backing_uuid or not disk.backing_uuid
    return either_unknown or previous.backing_uuid == disk.backing_uuid
