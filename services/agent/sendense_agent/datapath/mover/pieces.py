# SPDX-License-Identifier: Apache-2.0
"""Cutting work into requests, and data into what must be written and what is zeroes."""

from __future__ import annotations

from collections.abc import Iterator

from sendense_agent.domain.extents import Extents
from sendense_agent.domain.remainder import RECORD_BYTES

PIECE_BYTES = RECORD_BYTES
"""Largest read, write and data record; none crosses a multiple of it."""
GRAIN_BYTES = 64 * 1024
"""Zeroes shorter than this are written as data: smaller requests cost more than they save."""
ZERO_BYTES = 1024 * 1024 * 1024
"""Largest request for zeroes; QEMU refuses 4 GiB and more."""

_ZEROES = bytes(GRAIN_BYTES)


def reads(extents: Extents) -> Iterator[tuple[int, int]]:
    """(offset, length) of each read."""
    for start, length in extents:
        offset, end = start, start + length
        while offset < end:
            piece = min(PIECE_BYTES - offset % PIECE_BYTES, end - offset)
            yield offset, piece
            offset += piece


def zeroes(extents: Extents) -> Iterator[tuple[int, int]]:
    """(offset, length) of each request for zeroes."""
    for start, length in extents:
        offset, end = start, start + length
        while offset < end:
            piece = min(ZERO_BYTES, end - offset)
            yield offset, piece
            offset += piece


def is_zero(data: memoryview) -> bool:
    """Whether every byte is zero."""
    # Of bytes, for two memoryviews are compared item by item: thirty times slower.
    return data.tobytes() == (_ZEROES if len(data) == GRAIN_BYTES else bytes(len(data)))


def runs(data: memoryview, offset_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Cuts what was read at `offset_bytes` into (start within data, length, whether all of it is zeroes).

    Every byte is looked at. Runs meet at multiples of 64 KiB of the disk.
    """
    start = 0
    kind: bool | None = None
    position = 0
    while position < len(data):
        length = min(GRAIN_BYTES - (offset_bytes + position) % GRAIN_BYTES, len(data) - position)
        zero = is_zero(data[position : position + length])
        if kind is not None and zero != kind:
            yield start, position - start, kind
            start = position
        kind = zero
        position += length
    if kind is not None:
        yield start, len(data) - start, kind
