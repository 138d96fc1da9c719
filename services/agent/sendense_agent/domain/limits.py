# SPDX-License-Identifier: Apache-2.0
"""How gently a site is treated: what at most happens at once, and when a backup gives way."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True)
class Limits:
    """Of one agent, over all its jobs."""

    reads_per_host: int = 4
    """Disks read at once from the VMs of one ESXi host; each is one connection there."""
    snapshots_per_datastore: int = 2
    """VMs that have a snapshot of ours on one datastore at once."""
    floor_bytes: int = 10 * GIB
    """Free space that must stay on each datastore, or:"""
    floor_percent: float = 5.0
    """of its capacity, whichever is more."""
    max_snapshot_age_s: float = 24 * 3600.0
    """A snapshot of ours that reaches this age is removed, and its backup fails."""
    look_every_s: float = 30.0
    """How often free space and age are looked at while a snapshot exists."""

    def __post_init__(self) -> None:
        """ValueError: something that would stop every backup."""
        for name in ("reads_per_host", "snapshots_per_datastore", "max_snapshot_age_s", "look_every_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")
        if self.floor_bytes < 0 or not 0 <= self.floor_percent < 100:
            raise ValueError("the floor must be 0 or more bytes, and 0 to less than 100 percent")

    def floor(self, capacity_bytes: int) -> int:
        """Bytes that must stay free on a datastore of this size."""
        return max(self.floor_bytes, int(capacity_bytes * self.floor_percent / 100))
