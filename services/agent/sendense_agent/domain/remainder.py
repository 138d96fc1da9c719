# SPDX-License-Identifier: Apache-2.0
"""What is left to copy of a disk whose layer earlier attempts of the same job have begun.

A layer was written in one or more *eras*, each from one snapshot. What an era wrote, flushed and has in the
ledger is right for the snapshot that is read now, but for what changed since the era's own snapshot. That,
and all that the plan of a first attempt would copy, is copied; the rest is not touched again.

What an era wrote without a record in the ledger (it was not flushed, or its checkpoint got lost) does no
harm: it lies within what is copied again, or it is what the disk holds now. This takes that the changed areas
of each era are known, also of one that has no record at all.

An audit writes where nothing changed, as far as vSphere tells. Such a range is audited by each attempt, which
finds it again. Only one that changed in part since is not: the rest of it is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sendense_agent.domain.extents import Extents

RECORD_BYTES = 1024 * 1024
"""No record of data in a ledger crosses a multiple of it. It is copied again as a whole, never in part."""


@dataclass(frozen=True)
class Remainder:
    """Of one disk; the three have nothing in common."""

    read: Extents
    """From the source."""
    zero: Extents
    """To write as zeroes without reading."""
    kept: Extents
    """What the layer holds already, as it must be."""


@dataclass(frozen=True)
class Era:
    """One era of a layer."""

    changed: Extents
    """Since the era's snapshot; nothing when it is the one that is read now."""
    written: Extents
    """Flushed, and in the ledger."""


def remainder(
    read: Extents,
    zero: Extents,
    allocated: Extents | None,
    eras: Sequence[Era],
    *,
    capacity_bytes: int,
    record_bytes: int = RECORD_BYTES,
    sampled: Sequence[tuple[int, int]] = (),
) -> Remainder:
    """What is left.

    Args:
        read: what would be read if this were the first attempt.
        zero: what would be zeroed then.
        allocated: what is in use in the snapshot that is read; None: nobody can tell, so all of it.
        eras: of the layer that goes on.
        capacity_bytes: of the disk.
        record_bytes: for tests.
        sampled: (offset, length) of what each attempt audits as a whole, unless a part of it changed.
    """
    kept, again, changed = Extents(), Extents(), Extents()
    for era in eras:
        whole = era.changed.round_out(record_bytes).clip(capacity_bytes)
        kept = kept.union(era.written.subtract(whole))
        changed = changed.union(era.changed)
        again = again.union(era.changed).union(era.written.intersect(whole))
    in_use = again if allocated is None else again.intersect(allocated)
    torn = _touched(sampled, changed).clip(capacity_bytes).subtract(again).subtract(zero)
    read = read.union(in_use).union(torn).subtract(kept)
    zero = zero.union(again.subtract(in_use)).subtract(kept).subtract(read)
    return Remainder(read, zero, kept)


def _touched(ranges: Sequence[tuple[int, int]], changed: Extents) -> Extents:
    """Those of `ranges`, whole, of which at least a byte changed."""
    found, areas = Extents(), iter(changed)
    area = next(areas, None)
    for offset, length in sorted(ranges):
        while area is not None and sum(area) <= offset:
            area = next(areas, None)
        first = max(offset, found.end)
        if area is not None and area[0] < offset + length and first < offset + length:
            found.append(first, offset + length - first)
    return found
