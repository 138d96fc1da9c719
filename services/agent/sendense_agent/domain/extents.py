# SPDX-License-Identifier: Apache-2.0
"""Byte ranges of a disk: sorted, without overlaps, and compact, for a disk may have millions of them."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Iterator

_COUNT = struct.Struct("<Q")


class Extents:
    """Ranges in ascending order; neighbours that touch are one."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Args: ranges: (offset, length) in bytes, ascending."""
        self._starts = array("q")
        self._ends = array("q")
        for offset, length in ranges:
            self.append(offset, length)

    @classmethod
    def whole(cls, capacity_bytes: int) -> Extents:
        """One range, the whole disk."""
        return cls([(0, capacity_bytes)] if capacity_bytes else [])

    def append(self, offset_bytes: int, length_bytes: int) -> None:
        """Adds a range at the end.

        Raises:
            ValueError: it is empty, or begins before the end of what is there.
        """
        if length_bytes <= 0 or offset_bytes < 0:
            raise ValueError(f"not a range: {offset_bytes}, {length_bytes}")
        if self._ends and offset_bytes < self._ends[-1]:
            raise ValueError(f"range at {offset_bytes} begins before {self._ends[-1]}")
        if self._ends and offset_bytes == self._ends[-1]:
            self._ends[-1] += length_bytes
        else:
            self._starts.append(offset_bytes)
            self._ends.append(offset_bytes + length_bytes)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(offset, length) in bytes."""
        for start, end in zip(self._starts, self._ends, strict=True):
            yield start, end - start

    def __len__(self) -> int:
        """Number of ranges."""
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Extents):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Extents({len(self)} ranges, {self.total_bytes} bytes)"

    @property
    def total_bytes(self) -> int:
        """Sum of all lengths."""
        return sum(self._ends) - sum(self._starts)

    @property
    def end(self) -> int:
        """First byte after the last range; 0 when there is none."""
        return self._ends[-1] if self._ends else 0

    def intersect(self, other: Extents) -> Extents:
        """What is in both."""
        result = Extents()
        mine = theirs = 0
        while mine < len(self) and theirs < len(other):
            start = max(self._starts[mine], other._starts[theirs])
            end = min(self._ends[mine], other._ends[theirs])
            if start < end:
                result.append(start, end - start)
            if self._ends[mine] <= other._ends[theirs]:
                mine += 1
            else:
                theirs += 1
        return result

    def subtract(self, other: Extents) -> Extents:
        """What is here and not there."""
        result = Extents()
        theirs = 0
        for start, end in zip(self._starts, self._ends, strict=True):
            position = start
            while theirs < len(other) and other._ends[theirs] <= position:
                theirs += 1
            index = theirs
            while index < len(other) and other._starts[index] < end:
                if other._starts[index] > position:
                    result.append(position, other._starts[index] - position)
                position = max(position, other._ends[index])
                index += 1
            if position < end:
                result.append(position, end - position)
        return result

    def union(self, other: Extents) -> Extents:
        """What is in either."""
        result = Extents()
        for offset, length in sorted([*self, *other]):
            first = max(offset, result.end)
            if first < offset + length:
                result.append(first, offset + length - first)
        return result

    def round_out(self, unit_bytes: int) -> Extents:
        """All units, counted from 0, of which at least a byte is in here."""
        result = Extents()
        for start, end in zip(self._starts, self._ends, strict=True):
            first = max(start - start % unit_bytes, result.end)
            last = end + -end % unit_bytes
            if first < last:
                result.append(first, last - first)
        return result

    def clip(self, capacity_bytes: int) -> Extents:
        """What lies below `capacity_bytes`."""
        return self.intersect(Extents.whole(capacity_bytes))

    def to_bytes(self) -> bytes:
        """For another process of this machine."""
        return _COUNT.pack(len(self)) + self._starts.tobytes() + self._ends.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Extents:
        """What `to_bytes` gave."""
        (count,) = _COUNT.unpack_from(data)
        result = cls()
        size = count * result._starts.itemsize
        result._starts.frombytes(data[_COUNT.size : _COUNT.size + size])
        result._ends.frombytes(data[_COUNT.size + size : _COUNT.size + 2 * size])
        return result
