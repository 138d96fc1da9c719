# SPDX-License-Identifier: Apache-2.0
"""What of each disk must be read, asked of the snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.disk_mode import DiskNow, compared, decide
from sendense_agent.domain.extents import Extents
from sendense_agent.domain.remainder import Era, Remainder, remainder
from sendense_agent.domain.resuming import changes_to_ask_for
from sendense_agent.vsphere import ChangeIdRejectedError, Snapshot, VirtualDisk
from sendense_common.errors import SendenseError, invalid


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
    allocated: Extents | None = None
    """In use in the snapshot; None: the datastore cannot tell."""
    changed_in: tuple[Extents, ...] | None = None
    """Of each era of the layer that goes on, what changed since; None: a new layer is begun."""

    @property
    def whole(self) -> bool:
        """Whether all of it is read."""
        return self.allocated is None and self.mode != pb.DISK_MODE_INCREMENTAL

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
            keeps_layer=self.changed_in is not None,
            whole=self.whole,
        )

    def left(self, written: Mapping[int, Extents], sampled: Sequence[tuple[int, int]] = ()) -> Remainder:
        """What is left to copy.

        Args:
            written: of each era, by its number; what the hub says of a layer that does not go on is nothing.
            sampled: (offset, length) of data that is audited, in this attempt as in those before.

        Raises:
            SendenseError: INVALID_REQUEST when it cannot be of this disk.
        """
        if self.changed_in is None:
            return Remainder(self.read, self.zero, Extents())
        for number, extents in written.items():
            if not 0 <= number < len(self.changed_in) or extents.end > self.disk.capacity_bytes:
                raise invalid("written", f"era {number} of {self.disk.label} cannot have written that")
        return remainder(
            self.read,
            self.zero,
            self.allocated,
            [Era(changed, written.get(each, Extents())) for each, changed in enumerate(self.changed_in)],
            capacity_bytes=self.disk.capacity_bytes,
            sampled=sampled,
        )


async def plan_disk(
    snapshot: Snapshot,
    disk: VirtualDisk,
    previous: pb.PreviousDisk | None,
    *,
    tracking_just_enabled: bool,
    trusted: bool = True,
    begun: pb.ResumableDisk | None = None,
) -> DiskPlan:
    """Decides how one disk is copied, and whether the layer that earlier attempts have begun goes on.

    Areas that changed and are not in use any more are written as zeroes, or the old data would show through.
    Where the datastore cannot tell what is in use, everything (or all that changed) is read. What a compared
    disk does not use any more is zeroed by the mover, where the previous point has data. Of a disk that is
    not trusted all is read: what is in use is known from the same tracking.
    """
    plan = await _first_plan(
        snapshot, disk, previous, begun, tracking_just_enabled=tracking_just_enabled, trusted=trusted
    )
    asked = changes_to_ask_for(begun, plan.mode, disk_now(disk), snapshot.moref, trusted=trusted)
    if asked is None:
        return plan
    try:
        changed_in = tuple([await _changed(snapshot, disk, change_id) for change_id in asked])
    except ChangeIdRejectedError:
        return plan
    except SendenseError as error:
        if error.reason != Reason.REASON_CBT_INCONSISTENT:
            raise
        return plan
    changed = Extents()
    for each in changed_in:
        changed = changed.union(each)
    in_use = changed if plan.allocated is None else changed.intersect(plan.allocated)
    read = plan.read.union(in_use)
    zero = plan.zero.union(changed.subtract(in_use))
    incremental = plan.mode == pb.DISK_MODE_INCREMENTAL
    return replace(
        plan,
        read=read,
        zero=zero,
        changed_bytes=read.total_bytes + zero.total_bytes if incremental else plan.changed_bytes,
        changed_in=changed_in,
    )


async def _first_plan(
    snapshot: Snapshot,
    disk: VirtualDisk,
    previous: pb.PreviousDisk | None,
    begun: pb.ResumableDisk | None,
    *,
    tracking_just_enabled: bool,
    trusted: bool,
) -> DiskPlan:
    """As if nothing of this job were copied yet."""
    allocated = await snapshot.allocated(disk) if trusted else None
    mistrusted = begun.mode_reason if begun is not None and begun.mode == pb.DISK_MODE_COMPARED else ""
    how = decide(
        previous,
        disk_now(disk),
        tracking_just_enabled=tracking_just_enabled,
        trusted=trusted,
        mistrusted=mistrusted,
    )
    if how.mode == pb.DISK_MODE_INCREMENTAL:
        assert previous is not None
        try:
            changed = await snapshot.changed_since(disk, previous.change_id)
        except ChangeIdRejectedError:
            how = compared("change_id_rejected")
        else:
            plan = DiskPlan(disk, changed, Extents(), how.mode, how.reason, changed.total_bytes, allocated)
            if allocated is None:
                return plan
            return replace(plan, read=changed.intersect(allocated), zero=changed.subtract(allocated))
    everything = Extents.whole(disk.capacity_bytes) if allocated is None else allocated
    return DiskPlan(disk, everything, Extents(), how.mode, how.reason, everything.total_bytes, allocated)


async def _changed(snapshot: Snapshot, disk: VirtualDisk, change_id: str) -> Extents:
    return await snapshot.changed_since(disk, change_id) if change_id else Extents()


def disk_now(disk: VirtualDisk) -> DiskNow:
    """The disk as the rules see it."""
    return DiskNow(disk.key, disk.disk_object_id, disk.backing_uuid, disk.capacity_bytes, disk.change_id)
