# SPDX-License-Identifier: Apache-2.0
"""What a copy of a view cannot tell by itself, on disk until the view that can is open.

Of a record that a later layer has written over in part, the newest view has no digest; and whether a wrong
byte is wrong in the repository or in the copy alone, the copy does not say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sendense_hub.repository.ledger import Record

_PACKED = struct.Struct("<QQQQ32s")
_NO_DIGEST = bytes(32)
_READ = 16_384


@dataclass(frozen=True, slots=True)
class Doubt:
    """A part of the copy."""

    layer: int
    """Number of the layer in whose view the whole record is."""
    start: int
    end: int
    record: Record


class Doubts:
    """By layer; each layer's in a file of its own. Blocks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[int, IO[bytes]] = {}

    def add(self, doubt: Doubt) -> None:
        """One more."""
        if doubt.layer not in self._files:
            self._files[doubt.layer] = self._path(doubt.layer).open("wb")
        record = doubt.record
        self._files[doubt.layer].write(
            _PACKED.pack(doubt.start, doubt.end, record.offset_bytes, record.length_bytes, record.sha256)
        )

    def close(self) -> None:
        """That was all."""
        for file in self._files.values():
            file.close()

    def layers(self) -> list[int]:
        """That have any."""
        return sorted(self._files)

    def of_layer(self, layer: int) -> Iterator[Doubt]:
        """Those of one layer, in the order in which they came."""
        with self._path(layer).open("rb") as file:
            while packed := file.read(_PACKED.size * _READ):
                for start, end, offset, length, sha256 in _PACKED.iter_unpack(packed):
                    digest = b"" if sha256 == _NO_DIGEST else sha256
                    yield Doubt(layer, start, end, Record(offset, length, digest))

    def _path(self, layer: int) -> Path:
        return self._directory / f"doubts-{layer}"
