# SPDX-License-Identifier: Apache-2.0
"""The files of a log: JSON lines in segments, each named by the sequence of its first record.

    000000000001.jsonl   closed: it never changes again
    000000024817.jsonl   the records go here

Only ever appended to: what a power cut tore stays where it is, and the next record says so ("log.mended").
So a file system may enforce it (`chattr +a`).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sendense_common.audit_log.record import Record

# Nothing else that somebody leaves there, as a copy of a file, is taken for one.
_PATTERN = "[0-9]" * 12 + ".jsonl"
_LONGEST_LINE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Unreadable:
    """A line, or the piece of one, that is no record."""

    raw: bytes


@dataclass(frozen=True)
class Tail:
    """Where a log ends."""

    last: Record | None
    """The last record; None: there is none."""
    segment: Path | None
    """The last file."""
    torn: bytes
    """What comes after the last record and is none."""
    line_open: bool
    """Whether the last record lacks its line's end."""


def listed(directory: Path) -> list[Path]:
    """The segments, oldest first."""
    return sorted(directory.glob(_PATTERN), key=lambda path: int(path.stem))


def name_for(sequence: int) -> str:
    """Of the segment that begins with a record."""
    return f"{sequence:012d}.jsonl"


def holding(directory: Path, sequence: int) -> Path | None:
    """The segment that has a record, if any has."""
    return next((each for each in reversed(listed(directory)) if int(each.stem) <= sequence), None)


def read(directory: Path, *, last: Path | None = None, last_bytes: int = 0) -> Iterator[Record | Unreadable]:
    """Everything in a log, in the order of its files.

    Args:
        directory: the log.
        last: the segment that is being written; what comes after it is left out.
        last_bytes: how much of `last` is complete.
    """
    for segment in listed(directory):
        if last is None or segment.name != last.name:
            yield from read_file(segment)
        else:
            yield from read_file(segment, at_most_bytes=last_bytes)
            return


def read_file(segment: Path, *, at_most_bytes: int | None = None) -> Iterator[Record | Unreadable]:
    """Everything in one file."""
    left = at_most_bytes
    with segment.open("rb") as file:
        while line := file.readline(_LONGEST_LINE_BYTES if left is None else min(left, _LONGEST_LINE_BYTES)):
            left = None if left is None else left - len(line)
            yield parsed(line)


def parsed(line: bytes) -> Record | Unreadable:
    """What a line is."""
    try:
        return Record.from_line(line)
    except (ValueError, RecursionError):
        return Unreadable(line)


def tail(directory: Path) -> Tail:
    """Finds the end of a log. A record whose hash is wrong still is one: that is for the check to tell."""
    torn: list[bytes] = []
    segments = listed(directory)
    for segment in reversed(segments):
        lines = list(io.BytesIO(segment.read_bytes()))
        for number in reversed(range(len(lines))):
            entry = parsed(lines[number])
            if isinstance(entry, Record):
                after = b"".join(itertools.chain(lines[number + 1 :], torn))
                open_end = not lines[number].endswith(b"\n") and not torn
                return Tail(entry, segments[-1], after, open_end)
        torn[:0] = lines
    return Tail(None, segments[-1] if segments else None, b"".join(torn), False)
