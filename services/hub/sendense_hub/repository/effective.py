# SPDX-License-Identifier: Apache-2.0
"""What ledgers say in the end: later records replace the earlier ones that they overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from sendense_hub.repository.ledger import Record

UNKNOWN = b"?"
"""In the place of a digest: data, of which only a part is left."""


class Part(NamedTuple):
    """What is left of a record."""

    start: int
    """First byte in the disk."""
    end: int
    layer: int
    """Whose ledger it is from: 0 is the full's."""
    record: Record

    @property
    def whole(self) -> bool:
        """Whether nothing replaced any of it: then the digest can be checked here."""
        return self.end - self.start == self.record.length_bytes


def overlay(parts: Iterable[Part]) -> list[Part]:
    """Parts in the order of writing, as parts sorted by offset, without overlaps."""
    starts: list[int] = []
    kept: list[Part] = []
    for part in parts:
        first = bisect_right(starts, part.start) - 1
        if first < 0 or kept[first].end <= part.start:
            first += 1
        last = bisect_left(starts, part.end, lo=first)
        new = [part]
        if first < last:
            before, after = kept[first], kept[last - 1]
            if before.start < part.start:
                new.insert(0, before._replace(end=part.start))
            if after.end > part.end:
                new.append(after._replace(start=part.end))
        kept[first:last] = new
        starts[first:last] = [each.start for each in new]
    return kept


def effective(records: Iterable[Record], *, keep_unknown: bool = False) -> list[Record]:
    """Records sorted by offset, without overlaps.

    Zeroes that are overlapped in part keep their rest. Data that is overlapped in part has no digest that
    could be checked any more: what is left of it is dropped (writers copy whole records again), or is kept
    with the digest `UNKNOWN`, as it must be where ledgers of several layers are put together.
    """
    kept = []
    for part in overlay(Part(each.offset_bytes, each.end, 0, each) for each in records):
        sha256 = part.record.sha256
        if sha256 and not part.whole:
            if not keep_unknown:
                continue
            sha256 = UNKNOWN
        kept.append(Record(part.start, part.end - part.start, sha256))
    return kept
