# SPDX-License-Identifier: Apache-2.0
"""Work of a compared copy: each record of the previous point beside what is in use now, both in order.

A record is read as it was written, for its digest is of just those bytes. What has no record was zeroes. An
audit compares in the same way, but only a sample, of what is said not to have changed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from sendense_agent.datapath.mover.pieces import PIECE_BYTES
from sendense_agent.domain.extents import Extents

RECORD = struct.Struct("<QQQ32s")
"""Offset, length, kind, SHA-256; as in the hub's ledgers."""
_ZEROES, _DATA, _END = 0, 1, 2

Digest = tuple[int, int, bytes]
"""Offset, length, SHA-256."""


class DigestsError(ValueError):
    """What the hub gave cannot be the digests of this disk."""


@dataclass(frozen=True, slots=True)
class Work:
    """One request of a copy."""

    offset: int
    length: int
    zero: bool = False
    """To write zeroes without reading."""
    sha256: bytes | None = None
    """What the previous point holds there: data of this digest; empty: zeroes; None: it is not compared."""
    unused: tuple[tuple[int, int], ...] = ()
    """(start within it, length): parts that are not in use and count as zeroes, whatever is read there."""
    audit: bool = False
    """Whether it is said not to have changed: what differs is a mismatch."""


def digests(blocks: Iterable[bytes], capacity_bytes: int) -> Iterator[Digest]:
    """The records in `blocks`, one after another, up to the end mark.

    Raises:
        DigestsError: they are not ascending, not within the disk, longer than a piece, or end early.
    """
    position, rest = 0, b""
    for block in blocks:
        data = rest + block
        whole = len(data) - len(data) % RECORD.size
        for offset, length, kind, sha256 in RECORD.iter_unpack(data[:whole]):
            if kind == _END:
                return
            if kind != _DATA or not 0 < length <= PIECE_BYTES:
                raise DigestsError(f"record of kind {kind} and {length} bytes at {offset}")
            if offset < position or offset + length > capacity_bytes:
                raise DigestsError(f"record at {offset} of {length} bytes after {position}")
            position = offset + length
            yield offset, length, sha256
        rest = data[whole:]
    raise DigestsError(f"they end after byte {position}")


def work(
    in_use: Extents, before: Iterable[Digest], capacity_bytes: int, kept: Extents | None = None
) -> Iterator[Work]:
    """What makes the previous point's disk into this one, in order of offsets.

    Args:
        in_use: now.
        before: records of the previous point.
        capacity_bytes: of both.
        kept: what was copied already; a record of which only a part was is copied again as a whole.
    """
    kept = kept or Extents()
    used, fresh, done = _Parts(in_use), _Parts(in_use.subtract(kept)), _Parts(kept)
    for start, length, sha256 in chain(before, [(capacity_bytes, 0, b"")]):
        used.skip(start)
        done.skip(start)
        for offset, size in fresh.before(start):
            yield from _cut(offset, size)
        if not length:
            return
        fresh.skip(start + length)
        inside = list(used.before(start + length))
        if sum(size for _, size in done.before(start + length)) == length:
            continue
        if not inside:
            yield Work(start, length, zero=True)
        else:
            whole = Extents([(0, length)])
            unused = whole.subtract(Extents((offset - start, size) for offset, size in inside))
            yield Work(start, length, sha256=sha256, unused=tuple(unused))


def audit(sample: bytes, changed: Extents, capacity_bytes: int) -> Iterator[Work]:
    """What is read although it did not change, in order of offsets.

    A record of data that changed in part is left out: its digest is of all of it. Of zeroes the rest stays.

    Args:
        sample: records in any order, also twice.
        changed: since the point that they are of.
        capacity_bytes: of the disk.

    Raises:
        DigestsError: a record is not within the disk, or longer than a piece.
    """
    touched, position = _Parts(changed), 0
    for offset, length, kind, sha256 in sorted(RECORD.iter_unpack(sample)):
        end = offset + length
        if kind not in (_ZEROES, _DATA) or not 0 < length <= PIECE_BYTES or end > capacity_bytes:
            raise DigestsError(f"record of kind {kind} and {length} bytes at {offset}")
        if offset < position:
            continue  # said again
        position = end
        touched.skip(offset)
        inside = Extents(touched.before(end))
        if kind == _ZEROES:
            for start, size in Extents([(offset, length)]).subtract(inside):
                yield Work(start, size, sha256=b"", audit=True)
        elif not inside:
            yield Work(offset, length, sha256=sha256, audit=True)


def data_ranges(sample: bytes) -> list[tuple[int, int]]:
    """(offset, length) of what is compared as a whole or not at all, in any order; `audit` checks them."""
    whole = len(sample) - len(sample) % RECORD.size
    records = RECORD.iter_unpack(sample[:whole])
    return [(offset, length) for offset, length, kind, _ in records if kind == _DATA]


def _cut(offset: int, length: int) -> Iterator[Work]:
    end = offset + length
    while offset < end:
        piece = min(PIECE_BYTES - offset % PIECE_BYTES, end - offset)
        yield Work(offset, piece, sha256=b"")
        offset += piece


class _Parts:
    """Extents that are taken from the front."""

    def __init__(self, extents: Extents) -> None:
        self._left = iter(extents)
        self._now: tuple[int, int] | None = next(self._left, None)

    def skip(self, end: int) -> None:
        """Takes what is left below `end`."""
        for _ in self.before(end):
            pass

    def before(self, end: int) -> Iterator[tuple[int, int]]:
        """What is left below `end`; must be used up before the next call."""
        while self._now is not None and self._now[0] < end:
            offset, length = self._now
            taken = min(length, end - offset)
            self._now = (end, length - taken) if taken < length else next(self._left, None)
            yield offset, taken
