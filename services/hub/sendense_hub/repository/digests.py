# SPDX-License-Identifier: Apache-2.0
"""What a chain holds, as digests: all its ledgers put together, the full's first. docs/changed-blocks.md.

Ledgers are as long as a disk is large, and in the order of writing. They are dealt out to files of a part of
the disk each, then put together part by part: a record is read twice, and no more than a part is in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sendense_hub.repository import ledger
from sendense_hub.repository.effective import effective
from sendense_hub.repository.ledger import BLOCK_BYTES, RECORD, Record

PARTS = 256
_LEAST_PART_BYTES = 4 << 30
_BUFFERED_BYTES = 32 << 20
ZEROES, DATA, END = 0, 1, 2
"""Kinds of records; the last one is not in ledgers."""


def merged(ledgers: Iterable[Path], capacity_bytes: int, scratch: Path) -> Iterator[Record]:
    """The data of a chain's newest view, ascending; parts of records have the digest `effective.UNKNOWN`.

    What is not among it is zeroes. Blocks.

    Args:
        ledgers: of all layers, the full's first.
        capacity_bytes: of the disk.
        scratch: directory for as much as the ledgers hold together.
    """
    part_bytes = max(_LEAST_PART_BYTES, -(-capacity_bytes // (PARTS * BLOCK_BYTES)) * BLOCK_BYTES)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".parts") as directory:
        dealt = _deal(ledgers, part_bytes, Path(directory))
        for path in dealt:
            for record in effective(ledger.read(path), keep_unknown=True):
                if record.sha256:
                    yield record


def _deal(ledgers: Iterable[Path], part_bytes: int, directory: Path) -> list[Path]:
    """Files of records in their old order, one for each part of the disk that has any."""
    buffers: dict[int, bytearray] = {}
    buffered = 0

    def write() -> None:
        for number, buffer in buffers.items():
            with (directory / str(number)).open("ab") as file:
                file.write(buffer)
            buffer.clear()

    for path in ledgers:
        for record in ledger.read(path):
            # Data never crosses a part's end, which is a block's end: only zeroes are cut.
            for number in range(record.offset_bytes // part_bytes, (record.end - 1) // part_bytes + 1):
                first = max(record.offset_bytes, number * part_bytes)
                last = min(record.end, (number + 1) * part_bytes)
                kind = DATA if record.sha256 else ZEROES
                packed = RECORD.pack(first, last - first, kind, record.sha256)
                buffers.setdefault(number, bytearray()).extend(packed)
                buffered += len(packed)
            if buffered >= _BUFFERED_BYTES:
                write()
                buffered = 0
    write()
    return [directory / str(number) for number in sorted(buffers)]
