# SPDX-License-Identifier: Apache-2.0
"""Which ranges of a disk an audit looks at: drawn at random, at a cost that grows with what is drawn.

Of a ledger only a few records are read, here and there: they say where a disk has data, for most of it may be
empty. A smaller part is drawn from all of the disk, for data may have come where there was none.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

from sendense_hub.repository.ledger import BLOCK_BYTES, RECORD

_ZEROES = 0
_MOST_RECORDS = 1 << 20
# Neighbours are drawn together, so that a disk with a head has less to seek; not where few are drawn at all.
_CLUSTER, _CLUSTERED_FROM = 16, 256
_LEAST_RECORD_BYTES = 16 * 1024
# Of the bytes, this part is for ranges of which no ledger need know.
_ANYWHERE = 16

Range = tuple[int, int]
"""Offset, length."""


def draw(
    ledgers: Sequence[Path], capacity_bytes: int, *, share: float, max_bytes: int, dice: random.Random
) -> list[Range]:
    """Ranges in ascending order, without overlaps, each within one block of 1 MiB. Blocks.

    Args:
        ledgers: of a chain, in any order.
        capacity_bytes: of the disk.
        share: of the records, and of the disk's blocks; 0 to 1.
        max_bytes: of all ranges together.
        dice: the same ones draw the same.
    """
    anywhere_bytes = max(BLOCK_BYTES, max_bytes // _ANYWHERE)
    found = _of_ledgers(ledgers, share, max(0, max_bytes - anywhere_bytes), dice)
    found += _anywhere(capacity_bytes, share, anywhere_bytes, dice)
    return _without_overlaps(found, capacity_bytes)


def _of_ledgers(ledgers: Sequence[Path], share: float, max_bytes: int, dice: random.Random) -> list[Range]:
    counts = [path.stat().st_size // RECORD.size for path in ledgers]
    total = sum(counts)
    wanted = min(math.ceil(total * share), _MOST_RECORDS, max_bytes // _LEAST_RECORD_BYTES + 1)
    cluster = _CLUSTER if wanted >= _CLUSTERED_FROM else 1
    starts = dice.sample(range(-(-total // cluster)), -(-wanted // cluster))
    found: list[Range] = []
    drawn_bytes = 0
    files = [path.open("rb", buffering=0) for path in ledgers]
    try:
        for start in starts:
            for place in range(start * cluster, min(total, (start + 1) * cluster)):
                index = place
                for file, count in zip(files, counts, strict=True):
                    if index < count:
                        file.seek(index * RECORD.size)
                        offset, length, kind, _ = RECORD.unpack(file.read(RECORD.size))
                        break
                    index -= count
                if kind == _ZEROES:  # may be as long as the disk; what was zeroes is drawn otherwise
                    continue
                if drawn_bytes + length > max_bytes:
                    return found
                found.append((offset, length))
                drawn_bytes += length
    finally:
        for file in files:
            file.close()
    return found


def _anywhere(capacity_bytes: int, share: float, max_bytes: int, dice: random.Random) -> list[Range]:
    blocks = -(-capacity_bytes // BLOCK_BYTES)
    wanted = min(math.ceil(blocks * share), max_bytes // BLOCK_BYTES, _MOST_RECORDS)
    return [
        (block * BLOCK_BYTES, min(BLOCK_BYTES, capacity_bytes - block * BLOCK_BYTES))
        for block in dice.sample(range(blocks), wanted)
    ]


def _without_overlaps(found: list[Range], capacity_bytes: int) -> list[Range]:
    """Also without what cannot be: these records are not checked by their ledger's digest."""
    result: list[Range] = []
    end = 0
    for offset, length in sorted(found, key=lambda each: (each[0], -each[1])):
        first, last = max(offset, end), min(offset + length, capacity_bytes)
        if first < last and last - first <= BLOCK_BYTES:
            result.append((first, last - first))
            end = last
    return result
