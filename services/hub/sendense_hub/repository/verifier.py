# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.repository.verifier`: reads views of one disk and compares them with their ledgers.

Takes one line of JSON on standard input: the views of the chain, the full first, each with `uri` (NBD) and
`ledger` (path). Writes lines of JSON: {"read_bytes"} now and then, at the end with "sha256" of the newest
view; or {"problem", "view", "offset_bytes"}.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import nbd

from sendense_hub.repository import ledger
from sendense_hub.repository.effective import effective
from sendense_hub.repository.ledger import BLOCK_BYTES, RECORD, Record

# Records that are in memory at a time; a longer ledger is read several times, for a part of the disk each.
_RECORDS_AT_ONCE = 1_000_000
_STATUS_WINDOW_BYTES = 1 << 30
_REPORT_EVERY_S = 0.2
_ZERO = bytes(BLOCK_BYTES)


class MismatchError(Exception):
    """What is stored is not what was written."""

    def __init__(self, view: int, offset_bytes: int, problem: str) -> None:
        super().__init__(problem)
        self.report = {"view": view, "offset_bytes": offset_bytes, "problem": problem}


class Reports:
    """Says how far it is, a few times a second."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self._next_at = 0.0

    def read(self, length_bytes: int) -> None:
        """So much more."""
        self.read_bytes += length_bytes
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + _REPORT_EVERY_S
            say({"read_bytes": self.read_bytes})


def main() -> int:
    """Runs; the exit code is 1 after a problem."""
    views = json.loads(sys.stdin.readline())
    reports = Reports()
    try:
        for number, view in enumerate(views):
            check_view(number, connect(view["uri"]), Path(view["ledger"]), reports)
        newest = connect(views[-1]["uri"])
        written = [Path(view["ledger"]) for view in views]
        digest = hash_view(len(views) - 1, newest, written, reports)
    except MismatchError as found:
        say(found.report)
        return 1
    say({"read_bytes": reports.read_bytes, "sha256": digest})
    return 0


def say(report: dict[str, object]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def connect(uri: str) -> nbd.NBD:
    """A connection that knows where the data is."""
    handle = nbd.NBD()
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    return handle


def check_view(number: int, handle: nbd.NBD, path: Path, reports: Reports) -> None:
    """Compares what a layer's own ledger says with what its view shows."""
    for record in by_part(path, handle.get_size()):
        for offset, length in pieces(record):
            data = handle.pread(length, offset)
            if record.sha256:
                if hashlib.sha256(data).digest() != record.sha256:
                    raise MismatchError(number, offset, f"{length} bytes are not what was written")
            elif not is_zero(data):
                raise MismatchError(number, offset, f"{length} bytes should be zeroes")
            reports.read(length)


def hash_view(number: int, handle: nbd.NBD, ledgers: list[Path], reports: Reports) -> str:
    """SHA-256 of a whole view, hex; data outside all ledgers is a problem."""
    digest = hashlib.sha256()
    known = Coverage(ledgers)
    for offset, length, zero in blocks(handle):
        if zero:
            digest.update(_ZERO if length == BLOCK_BYTES else bytes(length))
        else:
            data = handle.pread(length, offset)
            digest.update(data)
            for start, end in known.gaps(offset, offset + length):
                if not is_zero(data[start - offset : end - offset]):
                    raise MismatchError(number, start, f"{end - start} bytes hold data that nobody wrote")
        reports.read(length)
    return digest.hexdigest()


class Coverage:
    """Which sectors of a disk a chain's ledgers call data: one bit each; no ledger is held in memory."""

    _SECTOR_BYTES = 512

    def __init__(self, ledgers: Iterable[Path]) -> None:
        self._blocks: dict[int, int] = {}
        self._full = (1 << (BLOCK_BYTES // self._SECTOR_BYTES)) - 1
        for path in ledgers:
            for record in ledger.read(path):
                if record.sha256:  # zeroes need no cover: a gap that reads as zeroes is no problem
                    self._mark(record.offset_bytes, record.end)

    def _mark(self, start: int, end: int) -> None:
        block, first = divmod(start, BLOCK_BYTES)
        bits = -(-(end - start) // self._SECTOR_BYTES)
        mask = ((1 << bits) - 1) << (first // self._SECTOR_BYTES)
        self._blocks[block] = self._blocks.get(block, 0) | mask

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Parts of [start, end), which lies in one block, that no data record covers."""
        bits = self._blocks.get(start // BLOCK_BYTES, 0)
        if bits == self._full:
            return
        for sector in range(start, end, self._SECTOR_BYTES):
            if not bits >> (sector % BLOCK_BYTES // self._SECTOR_BYTES) & 1:
                yield sector, min(sector + self._SECTOR_BYTES, end)


def by_part(path: Path, capacity_bytes: int) -> Iterator[Record]:
    """The effective records of a ledger, with a bounded number of them in memory."""
    count = path.stat().st_size // RECORD.size
    parts = max(1, -(-count // _RECORDS_AT_ONCE))
    part_bytes = -(-capacity_bytes // (parts * BLOCK_BYTES)) * BLOCK_BYTES
    for start in range(0, capacity_bytes, part_bytes):
        end = min(start + part_bytes, capacity_bytes)
        yield from effective(clipped(ledger.read(path), start, end))


def clipped(records: Iterable[Record], start: int, end: int) -> Iterator[Record]:
    """What of the records lies in [start, end), whose ends are block boundaries: only zeroes are ever cut."""
    for record in records:
        first, last = max(record.offset_bytes, start), min(record.end, end)
        if first < last:
            yield Record(first, last - first, record.sha256)


def pieces(record: Record) -> Iterator[tuple[int, int]]:
    """(offset, length) of at most one block each."""
    offset = record.offset_bytes
    while offset < record.end:
        length = min(BLOCK_BYTES - offset % BLOCK_BYTES, record.end - offset)
        yield offset, length
        offset += length


def blocks(handle: nbd.NBD) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is known to be zeroes) for the whole disk, each within one block."""
    size = handle.get_size()
    offset = 0
    while offset < size:
        extents: list[int] = []

        def collect(context: str, _offset: int, entries: list[int], _error: int) -> int:
            if context == nbd.CONTEXT_BASE_ALLOCATION:
                extents.extend(entries)  # noqa: B023 - called only within this turn
            return 0

        handle.block_status(min(_STATUS_WINDOW_BYTES, size - offset), offset, collect)
        for length, flags in zip(islice(extents, 0, None, 2), islice(extents, 1, None, 2), strict=True):
            run = Record(offset, min(length, size - offset), b"")
            for start, part in pieces(run):
                yield start, part, bool(flags & nbd.STATE_ZERO)
            offset = run.end


def is_zero(data: bytes) -> bool:
    """Whether every byte is zero."""
    return data == (_ZERO if len(data) == BLOCK_BYTES else bytes(len(data)))


if __name__ == "__main__":
    sys.exit(main())
