# SPDX-License-Identifier: Apache-2.0
"""What a ledger says in the end: later records replace the earlier ones that they overlap."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from sendense_hub.repository.ledger import Record

UNKNOWN = b"?"
"""In the place of a digest: data, of which only a part is left."""


def effective(records: Iterable[Record], *, keep_unknown: bool = False) -> list[Record]:
    """Records sorted by offset, without overlaps.

    Zeroes that are overlapped in part keep their rest. Data that is overlapped in part has no digest that
    could be checked any more: what is left of it is dropped (writers copy whole records again), or is kept
    with the digest `UNKNOWN`, as it must be where ledgers of several layers are put together.
    """
    starts: list[int] = []
    kept: list[Record] = []
    for record in records:
        first = bisect_right(starts, record.offset_bytes) - 1
        if first < 0 or kept[first].end <= record.offset_bytes:
            first += 1
        last = bisect_left(starts, record.end, lo=first)
        rest: list[Record] = []
        for old in kept[first:last]:
            if old.sha256 and not keep_unknown:
                continue
            left = UNKNOWN if old.sha256 else b""
            if old.offset_bytes < record.offset_bytes:
                rest.append(Record(old.offset_bytes, record.offset_bytes - old.offset_bytes, left))
            if old.end > record.end:
                rest.append(Record(record.end, old.end - record.end, left))
        new = sorted([*rest, record], key=lambda each: each.offset_bytes)
        kept[first:last] = new
        starts[first:last] = [each.offset_bytes for each in new]
    return kept
