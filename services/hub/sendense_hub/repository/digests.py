# SPDX-License-Identifier: Apache-2.0
"""What a chain holds, as digests: all its ledgers put together, the full's first. docs/changed-blocks.md.

Ledgers are as long as a disk is large, and in the order of writing. They are dealt out to files of a part of
the disk each, then put together part by part: a record is read twice, and no more than a part is in memory.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sendense_hub.repository import ledger
from sendense_hub.repository.effective import UNKNOWN, Part, overlay
from sendense_hub.repository.ledger import BLOCK_BYTES, Record

PARTS = 4096
_LEAST_PART_BYTES = 4 << 30
_BUFFERED_BYTES = 32 << 20
DATA, END = 1, 2
"""Kinds of records; the last one is not in ledgers."""

# Start, end, number of the layer, SHA-256 (none of zeroes). Of data it is the whole record.
_DEALT = struct.Struct("<QQQ32s")
_NO_DIGEST = bytes(32)
_READ_RECORDS = 16_384


class Dealt:
    """Ledgers of a chain, dealt out; as often as needed, from the disk's start to its end. Blocks."""

    def __init__(self, files: list[Path]) -> None:
        """Made by `dealt`."""
        self._files = files

    def parts(self) -> Iterator[Part]:
        """What is left of each record, ascending; what is not among it was never written."""
        for path in self._files:
            yield from overlay(_read(path))

    def data(self) -> Iterator[Part]:
        """Of data alone."""
        return (part for part in self.parts() if part.record.sha256)


@contextlib.contextmanager
def dealt(ledgers: Iterable[Path], capacity_bytes: int, scratch: Path) -> Iterator[Dealt]:
    """Deals the ledgers out for as long as the block runs. Blocks.

    Args:
        ledgers: of all layers, the full's first.
        capacity_bytes: of the disk.
        scratch: directory for as much as the ledgers hold together.
    """
    part_bytes = max(_LEAST_PART_BYTES, -(-capacity_bytes // (PARTS * BLOCK_BYTES)) * BLOCK_BYTES)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".parts") as directory:
        yield Dealt(_deal(ledgers, part_bytes, Path(directory)))


def merged(ledgers: Iterable[Path], capacity_bytes: int, scratch: Path) -> Iterator[Record]:
    """The data of a chain's newest view, ascending; parts of records have the digest `effective.UNKNOWN`.

    What is not among it is zeroes. Blocks. The arguments are those of `dealt`.
    """
    with dealt(ledgers, capacity_bytes, scratch) as chain:
        for part in chain.data():
            yield part.record if part.whole else Record(part.start, part.end - part.start, UNKNOWN)


def _deal(ledgers: Iterable[Path], part_bytes: int, directory: Path) -> list[Path]:
    """Files of records in their old order, one for each part of the disk that has any."""
    buffers: dict[int, bytearray] = {}
    buffered = 0

    def write() -> None:
        for number, buffer in buffers.items():
            if buffer:
                with (directory / str(number)).open("ab") as file:
                    file.write(buffer)
                buffer.clear()

    for layer, path in enumerate(ledgers):
        for record in ledger.read(path):
            # Data never crosses a part's end, which is a block's end: only zeroes are cut.
            for number in range(record.offset_bytes // part_bytes, (record.end - 1) // part_bytes + 1):
                first = max(record.offset_bytes, number * part_bytes)
                last = min(record.end, (number + 1) * part_bytes)
                buffers.setdefault(number, bytearray()).extend(_DEALT.pack(first, last, layer, record.sha256))
                buffered += _DEALT.size
            if buffered >= _BUFFERED_BYTES:
                write()
                buffered = 0
    write()
    return [directory / str(number) for number in sorted(buffers)]


def _read(path: Path) -> Iterator[Part]:
    with path.open("rb") as file:
        while data := file.read(_DEALT.size * _READ_RECORDS):
            for start, end, layer, sha256 in _DEALT.iter_unpack(data):
                digest = b"" if sha256 == _NO_DIGEST else sha256
                yield Part(start, end, layer, Record(start, end - start, digest))
