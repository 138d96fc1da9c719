# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_hub.repository.verifier DIRECTORY`: compares views of one disk with ledgers.

Takes lines of JSON on standard input, one for each thing to do; DIRECTORY is for scratch files. URIs are of
NBD views, ledgers are paths, of all layers of a chain, the full's first.

    {"do": "layer", "uri", "ledger"}      a view and what its own layer's ledger says of it
    {"do": "whole", "uri", "ledgers"}     a whole view: data that no ledger speaks of; its SHA-256
    {"do": "output", "uri", "ledgers"}    a copy of the newest view: what the ledgers can tell of it
    {"do": "doubt", "uri", "layer"}       the view of a layer, for what the copy alone could not tell

Writes lines of JSON: {"read_bytes"} now and then, counted from the start; at the end of each thing {"done":
true}, with "sha256" (whole) or "doubts" (output: numbers of layers); or, as the last, {"problem",
"offset_bytes", "where"}: in the "view"; or in the "output": what was stored is right, the copy is not.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import nbd

from sendense_hub.repository.digests import dealt
from sendense_hub.repository.doubts import Doubt, Doubts
from sendense_hub.repository.effective import Part
from sendense_hub.repository.ledger import BLOCK_BYTES, Record

_STATUS_WINDOW_BYTES = 1 << 30
_REPORT_EVERY_S = 0.2
_ZERO = bytes(BLOCK_BYTES)


class MismatchError(Exception):
    """What is stored is not what was written."""

    def __init__(self, offset_bytes: int, problem: str, where: str) -> None:
        super().__init__(problem)
        self.report = {"offset_bytes": offset_bytes, "problem": problem, "where": where}


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


class View:
    """A disk as NBD shows it."""

    def __init__(self, uri: str, where: str) -> None:
        self.where = where
        self._handle = nbd.NBD()
        self._handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        self._handle.set_uri_allow_local_file(True)
        self._handle.connect_uri(uri)
        self.size: int = self._handle.get_size()

    def read(self, start: int, end: int) -> bytes:
        """What is there; a problem when it cannot be read."""
        try:
            data: bytes = self._handle.pread(end - start, start)
        except nbd.Error as error:
            if error.errno != "EIO":
                raise
            raise MismatchError(start, f"{end - start} bytes cannot be read", self.where) from error
        return data

    def matches(self, record: Record) -> bool:
        """Whether a record's bytes are there."""
        for start, length in pieces(record):
            data = self.read(start, start + length)
            if record.sha256:
                if hashlib.sha256(data).digest() != record.sha256:
                    return False
            elif not is_zero(data):
                return False
        return True

    def blocks(self) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether it is known to be zeroes) for the whole disk, each within one block."""
        offset = 0
        while offset < self.size:
            extents: list[int] = []

            def collect(context: str, _offset: int, entries: list[int], _error: int) -> int:
                if context == nbd.CONTEXT_BASE_ALLOCATION:
                    extents.extend(entries)  # noqa: B023 - called only within this turn
                return 0

            self._handle.block_status(min(_STATUS_WINDOW_BYTES, self.size - offset), offset, collect)
            for length, flags in zip(islice(extents, 0, None, 2), islice(extents, 1, None, 2), strict=True):
                run = Record(offset, min(length, self.size - offset), b"")
                for start, part in pieces(run):
                    yield start, part, bool(flags & nbd.STATE_ZERO)
                offset = run.end

    def close(self) -> None:
        """No more."""
        self._handle.shutdown()


class Verifier:
    """Does one thing after the other."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._reports = Reports()
        self._doubts = Doubts(scratch)
        self._output: View | None = None

    def do(self, task: dict[str, Any]) -> dict[str, object]:
        """What there is to say about it when all is right; else MismatchError."""
        view = View(task["uri"], "output" if task["do"] == "output" else "view")
        found: dict[str, object] = {}
        match task["do"]:
            case "layer":
                check_layer(view, Path(task["ledger"]), self._scratch, self._reports)
            case "whole":
                ledgers = [Path(each) for each in task["ledgers"]]
                found["sha256"] = hash_view(view, ledgers, self._scratch, self._reports)
            case "output":
                ledgers = [Path(each) for each in task["ledgers"]]
                check_output(view, ledgers, self._doubts, self._scratch, self._reports)
                self._output = view
                return {"done": True, "read_bytes": self._reports.read_bytes, "doubts": self._doubts.layers()}
            case _:
                assert self._output is not None
                for doubt in self._doubts.of_layer(task["layer"]):
                    settle(doubt, view, self._output, self._reports)
        view.close()
        return {"done": True, "read_bytes": self._reports.read_bytes, **found}


def main() -> int:
    """Runs; the exit code is 1 after a problem, and when what is read went away."""
    verifier = Verifier(Path(sys.argv[1]))
    for line in sys.stdin:
        try:
            say(verifier.do(json.loads(line)))
        except MismatchError as mismatch:
            say(mismatch.report)
            return 1
        except nbd.Error as error:
            say({"broken": str(error)})
            return 1
    return 0


def say(report: dict[str, object]) -> None:
    """One line."""
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def check_layer(view: View, path: Path, scratch: Path, reports: Reports) -> None:
    """Compares what a layer's own ledger says with what its view shows."""
    with dealt([path], view.size, scratch) as own:
        for part in own.parts():
            # What is left of data that was written over has no digest; its writer copied it again whole.
            if part.whole or not part.record.sha256:
                left = Record(part.start, part.end - part.start, part.record.sha256)
                for start, length in pieces(left):
                    if not view.matches(Record(start, length, left.sha256)):
                        what = "are not what was written" if left.sha256 else "should be zeroes"
                        raise MismatchError(start, f"{length} bytes {what}", view.where)
                    reports.read(length)


def hash_view(view: View, ledgers: list[Path], scratch: Path, reports: Reports) -> str:
    """SHA-256 of a whole view, hex; data outside all ledgers is a problem."""
    digest = hashlib.sha256()
    with dealt(ledgers, view.size, scratch) as chain:
        gaps = Gaps(chain.data())
        for offset, length, zero in view.blocks():
            if zero:
                digest.update(_ZERO if length == BLOCK_BYTES else bytes(length))
            else:
                data = view.read(offset, offset + length)
                digest.update(data)
                for start, end in gaps.between(offset, offset + length):
                    if not is_zero(data[start - offset : end - offset]):
                        problem = f"{end - start} bytes hold data that nobody wrote"
                        raise MismatchError(start, problem, view.where)
            reports.read(length)
    return digest.hexdigest()


def check_output(view: View, ledgers: list[Path], doubts: Doubts, scratch: Path, reports: Reports) -> None:
    """Compares a copy with what the ledgers say of the newest view; what they cannot tell is in `doubts`."""
    newest = len(ledgers) - 1
    with dealt(ledgers, view.size, scratch) as chain:
        for part in chain.data():
            if not part.whole or not view.matches(part.record):
                doubts.add(Doubt(part.layer, part.start, part.end, part.record))
            else:
                reports.read(part.end - part.start)
        gaps = Gaps(chain.data())
        for offset, length, zero in view.blocks():
            if zero:
                continue
            for start, end in gaps.between(offset, offset + length):
                if not is_zero(view.read(start, end)):
                    doubts.add(Doubt(newest, start, end, Record(start, end - start, b"")))
    doubts.close()


def settle(doubt: Doubt, view: View, output: View, reports: Reports) -> None:
    """Looks at the view in which the whole record is: it must be right there, and the copy like it."""
    record = doubt.record
    data = view.read(record.offset_bytes, record.end)
    length = record.length_bytes
    if record.sha256:
        if hashlib.sha256(data).digest() != record.sha256:
            problem = f"{length} bytes are not what was written"
            raise MismatchError(record.offset_bytes, problem, view.where)
    elif not is_zero(data):
        problem = f"{length} bytes hold data that nobody wrote"
        raise MismatchError(record.offset_bytes, problem, view.where)
    start, end = doubt.start, doubt.end
    if output.read(start, end) != data[start - record.offset_bytes : end - record.offset_bytes]:
        raise MismatchError(start, f"{end - start} bytes were not written as they were read", output.where)
    reports.read(end - start)


class Gaps:
    """What no data covers, asked for in ascending order."""

    def __init__(self, data: Iterator[Part]) -> None:
        self._data = data
        self._now = next(data, None)

    def between(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) without data."""
        while start < end:
            while self._now is not None and self._now.end <= start:
                self._now = next(self._data, None)
            if self._now is None or self._now.start >= end:
                yield start, end
                return
            if self._now.start > start:
                yield start, self._now.start
            start = self._now.end


def pieces(record: Record) -> Iterator[tuple[int, int]]:
    """(offset, length) of at most one block each."""
    offset = record.offset_bytes
    while offset < record.end:
        length = min(BLOCK_BYTES - offset % BLOCK_BYTES, record.end - offset)
        yield offset, length
        offset += length


def is_zero(data: bytes) -> bool:
    """Whether every byte is zero."""
    return data == (_ZERO if len(data) == BLOCK_BYTES else bytes(len(data)))


if __name__ == "__main__":
    sys.exit(main())
