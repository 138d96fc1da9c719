# SPDX-License-Identifier: Apache-2.0
"""What of each disk must be read, asked of the snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.domain.disk_mode import DiskNow, compared, decide
from sendense_agent.domain.extents import Extents
from sendense_agent.vsphere import ChangeIdRejectedError, Snapshot, VirtualDisk


@dataclass(frozen=True)
class DiskPlan:
    """One disk."""

    disk: VirtualDisk
    read: Extents
    """From the source."""
    zero: Extents
    """To write as zeroes without reading."""
    mode: pb.DiskMode.ValueType
    reason: str
    """Why it is no incremental; empty for one."""
    changed_bytes: int
    """Changed; in use for a full and a compared disk."""

    def message(self) -> pb.PlannedDisk:
        """For the hub."""
        return pb.PlannedDisk(
            key=self.disk.key,
            label=self.disk.label,
            disk_object_id=self.disk.disk_object_id,
            backing_uuid=self.disk.backing_uuid,
            capacity_bytes=self.disk.capacity_bytes,
            change_id=self.disk.change_id,
            mode=self.mode,
            mode_reason=self.reason,
            planned_read_bytes=self.read.total_bytes,
            changed_bytes=self.changed_bytes,
        )


async def plan_disk(
    snapshot: Snapshot, disk: VirtualDisk, previous: pb.PreviousDisk | None, *, tracking_just_enabled: bool
) -> DiskPlan:
    """Decides how one disk is copied.

    Areas that changed and are not in use any more are written as zeroes, or the old data would show through.
    Where the datastore cannot tell what is in use, everything (or all that changed) is read. What a compared
    disk does not use any more is zeroed by the mover, where the previous point has data.
    """
    allocated = await snapshot.allocated(disk)
    now = DiskNow(disk.key, disk.disk_object_id, disk.backing_uuid, disk.capacity_bytes, disk.change_id)
    how = decide(previous, now, tracking_just_enabled=tracking_just_enabled)
    if how.mode == pb.DISK_MODE_INCREMENTAL:
        assert previous is not None
        try:
            changed = await snapshot.changed_since(disk, previous.change_id)
        except ChangeIdRejectedError:
            how = compared("change_id_rejected")
        else:
            incremental = DiskPlan(disk, changed, Extents(), how.mode, how.reason, changed.total_bytes)
            if allocated is None:
                return incremental
            return replace(incremental, read=changed.intersect(allocated), zero=changed.subtract(allocated))
    everything = Extents.whole(disk.capacity_bytes) if allocated is None else allocated
    return DiskPlan(disk, everything, Extents(), how.mode, how.reason, everything.total_bytes)
