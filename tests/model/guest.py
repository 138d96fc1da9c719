# SPDX-License-Identifier: Apache-2.0
"""What a guest has on its disks, kept as plain bytes beside the simulated vCenter and independent of it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

GRANULE_BYTES = 64 * 1024
SECTOR_BYTES = 512
SIZES = (SECTOR_BYTES, GRANULE_BYTES + SECTOR_BYTES, 1 << 20, (5 << 19) + 3 * SECTOR_BYTES, 4 << 20)
"""Capacities: less than a granule, odd tails, exactly one piece of the mover, several."""
LARGEST_BYTES = 6 << 20


@dataclass(frozen=True)
class Change:
    """Something that the guest does to a disk. Numbers of any size are made to fit."""

    kind: str
    """ "write", "zero" or "trim"."""
    disk: int
    place: int
    """0 to 1023: from the first byte to the last."""
    length_bytes: int
    seed: int


@dataclass
class Guest:
    """The disks of one VM, by device key."""

    disks: dict[int, bytearray] = field(default_factory=dict)

    def key(self, number: int) -> int:
        """One of its disks, for any number."""
        return sorted(self.disks)[number % len(self.disks)]

    def apply(self, change: Change) -> tuple[int, int, bytes]:
        """Does it; gives (device key, offset, what is there now)."""
        key = self.key(change.disk)
        content = self.disks[key]
        offset = min(len(content) * change.place // 1023, len(content) - 1)
        length = min(change.length_bytes, len(content) - offset)
        if change.kind == "trim":
            # Whole granules are given back; what is left over of others stays as it is.
            first = -(-offset // GRANULE_BYTES) * GRANULE_BYTES
            last = (offset + length) // GRANULE_BYTES * GRANULE_BYTES
            if first < last:
                content[first:last] = bytes(last - first)
            return key, offset, bytes(content[offset : offset + length])
        data = random.Random(change.seed).randbytes(length) if change.kind == "write" else bytes(length)
        content[offset : offset + length] = data
        return key, offset, data

    def frozen(self) -> dict[int, bytes]:
        """All disks as they are now."""
        return {key: bytes(content) for key, content in self.disks.items()}
