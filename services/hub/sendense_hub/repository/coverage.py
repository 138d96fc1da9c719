# SPDX-License-Identifier: Apache-2.0
"""What a part of a ledger covers, as ranges: what a later attempt need not copy again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sendense_hub.repository import ledger
from sendense_hub.repository.ledger import RECORD, Record

Range = tuple[int, int]
"""First byte, and the first byte after it."""

_TIDY_AT = 100_000


@dataclass(frozen=True)
class Coverage:
    """Of the records between two moments."""

    ranges: list[Range]
    """Ascending, apart from each other."""
    data_bytes: int
    """In data records, what was written twice counted twice."""


def of_ledger(path: Path, first_byte: int, end_byte: int) -> Coverage:
    """What the records from `first_byte` to `end_byte` of the file cover. Blocks.

    Movers write more or less in ascending order, so a disk of any size comes to a few ranges.
    """
    ranges: list[Range] = []
    data_bytes = 0
    for record in _records(path, first_byte, end_byte):
        data_bytes += record.length_bytes if record.sha256 else 0
        if ranges and ranges[-1][1] == record.offset_bytes:
            ranges[-1] = (ranges[-1][0], record.end)
        else:
            ranges.append((record.offset_bytes, record.end))
            if len(ranges) % _TIDY_AT == 0:
                ranges = merged(ranges)
    return Coverage(merged(ranges), data_bytes)


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted; those that touch or overlap are one."""
    result: list[Range] = []
    for first, end in sorted(ranges):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((first, end))
    return result


def _records(path: Path, first_byte: int, end_byte: int) -> Iterator[Record]:
    first, end = first_byte // RECORD.size, end_byte // RECORD.size
    return islice(ledger.read(path), first, end)
