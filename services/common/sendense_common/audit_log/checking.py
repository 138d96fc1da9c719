# SPDX-License-Identifier: Apache-2.0
"""Recomputing a chain, and naming what is wrong with it. Pure: entries come in, findings come out."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from sendense_common.audit_log.record import GENESIS, Record
from sendense_common.audit_log.segments import Unreadable


class Problem(enum.StrEnum):
    """What is wrong at a place."""

    CHANGED = "changed"
    """A record is not the one that was written."""
    MISSING = "missing"
    """Records between others, or at the beginning, are gone."""
    OUT_OF_ORDER = "out of order"
    """A record is not at its place."""
    INSERTED = "inserted"
    """A line was added."""
    TORN = "torn"
    """A line is unfinished, and no record accounts for it: the service has not started since."""
    TRUNCATED = "truncated"
    """The end is gone: somebody has seen later records."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    sequence: int
    """Of the record it is about, or of the first of them."""
    problem: Problem
    words: str


@dataclass(frozen=True)
class Anchor:
    """The head of a log as somebody else has seen it."""

    witness: str
    """Who, as "the hub's catalog"."""
    sequence: int
    hash: bytes


class Checker:
    """Takes a log's entries one after another; memory does not grow with a log that is right."""

    def __init__(self, anchors: Iterable[Anchor] = (), *, of_log: str = "") -> None:
        """What is checked.

        Args:
            anchors: what others have seen of this log.
            of_log: whose it is: a record of another service does not belong into it. Empty: not known.
        """
        self._of_log = of_log
        self._anchors: dict[int, list[Anchor]] = {}
        for anchor in anchors:
            if anchor.sequence:
                self._anchors.setdefault(anchor.sequence, []).append(anchor)
        self._findings: list[Finding] = []
        self._first: Record | None = None
        self._last: Record | None = None
        self._hashes: set[bytes] = {GENESIS}
        self._changed = 0
        self._gaps: dict[int, int] = {}
        self._torn_bytes = 0
        self._torn = hashlib.sha256()
        self._unreadable = 0
        self._discarded: dict[int, bytes] = {}
        self.count = 0
        """Records so far."""
        self.mended = 0
        """Torn ends that the service accounted for when it started again."""

    @property
    def first(self) -> Record | None:
        """The oldest record."""
        return self._first

    @property
    def last(self) -> Record | None:
        """The record with the highest sequence."""
        return self._last

    def take(self, entry: Record | Unreadable) -> None:
        """The next one, in the order of the log's files."""
        if isinstance(entry, Unreadable):
            self._torn_bytes += len(entry.raw)
            self._torn.update(entry.raw)
            self._unreadable += 1
            return
        self.count += 1
        self._take_torn(entry)
        expected = 1 if self._last is None else self._last.sequence + 1
        if entry.sequence < expected:
            self._take_late(entry)
            return
        if entry.digest() != entry.hash:
            self._find_changed(entry.sequence, "its hash is not that of its fields")
        elif self._of_log and entry.service != self._of_log:
            self._find_changed(entry.sequence, f"it says that it is of the log of {entry.service[:80]!r}")
        if self._first is None:
            self._first = entry
        elif entry.sequence > expected:
            self._gaps[expected] = entry.sequence - 1
        elif entry.previous not in self._hashes:
            self._find_changed(entry.sequence - 1, f"record {entry.sequence} follows another one")
        self._compare(entry)
        self._last, self._hashes = entry, {entry.hash}
        if entry.act == "log.discarded":
            self._note_discarded(entry)

    def findings(self, *, to_its_end: bool = True) -> list[Finding]:
        """What is wrong, by sequence; to be asked at the end.

        Args:
            to_its_end: whether the log was read so far: else what it ends with is no finding.
        """
        found = list(self._findings)
        last = self._last.sequence if self._last else 0
        if self._unreadable and to_its_end:
            words = f"{self._torn_bytes} bytes after record {last} are no record"
            found.append(Finding(last + 1, Problem.TORN, words))
        for begin, end in self._gaps.items():
            found.append(Finding(begin, Problem.MISSING, _records(begin, end) + " not there"))
        found += self._missing_at_the_beginning(to_its_end=to_its_end)
        for sequence, anchors in self._anchors.items():
            if sequence > last and to_its_end:
                witnesses = " and ".join(sorted({anchor.witness for anchor in anchors}))
                words = f"{_records(last + 1, sequence)} gone: {witnesses} saw {sequence}"
                found.append(Finding(last + 1, Problem.TRUNCATED, words))
        return sorted(found, key=lambda finding: finding.sequence)

    def _take_late(self, entry: Record) -> None:
        """A record with a sequence that has passed."""
        assert self._last is not None
        for begin, end in self._gaps.items():
            if begin <= entry.sequence <= end:
                del self._gaps[begin]
                if begin < entry.sequence:
                    self._gaps[begin] = entry.sequence - 1
                if entry.sequence < end:
                    self._gaps[entry.sequence + 1] = end
                self._find(
                    entry.sequence, Problem.OUT_OF_ORDER, f"it comes after record {self._last.sequence}"
                )
                break
        else:
            self._find(entry.sequence, Problem.INSERTED, "there are several of this sequence")
            if entry.sequence == self._last.sequence:
                self._hashes.add(entry.hash)
                return
        if entry.digest() != entry.hash:
            self._find_changed(entry.sequence, "its hash is not that of its fields")

    def _take_torn(self, entry: Record) -> None:
        """Lines that are no records came before this one."""
        if not self._unreadable:
            return
        accounted = (
            entry.act == "log.mended"
            and entry.facts.get("bytes") == str(self._torn_bytes)
            and entry.facts.get("sha256") == self._torn.hexdigest()
        )
        expected = 1 if self._last is None else self._last.sequence + 1
        if accounted:
            self.mended += 1
        elif entry.sequence > expected:
            # It stands where the record was: once is enough said.
            self._find(expected, Problem.CHANGED, "it cannot be read any more")
            if entry.sequence - expected <= self._unreadable:
                self._hashes = {entry.previous}
                self._last = _stand_in(entry)
                self._first = self._first or self._last
        else:
            self._find(expected, Problem.INSERTED, f"{self._torn_bytes} bytes before it are no record")
        self._torn_bytes, self._torn, self._unreadable = 0, hashlib.sha256(), 0

    def _compare(self, entry: Record) -> None:
        for anchor in self._anchors.get(entry.sequence, ()):
            if anchor.hash != entry.hash:
                self._find_changed(entry.sequence, f"{anchor.witness} saw another one")

    def _note_discarded(self, entry: Record) -> None:
        try:
            self._discarded[int(entry.facts["through"])] = bytes.fromhex(entry.facts["through_hash"])
        except (KeyError, ValueError):
            self._find(entry.sequence, Problem.CHANGED, "it does not say what was discarded")

    def _missing_at_the_beginning(self, *, to_its_end: bool) -> list[Finding]:
        first = self._first
        if first is None:
            return []
        before = first.sequence - 1
        if before == 0:
            return (
                [] if first.previous == GENESIS else [Finding(1, Problem.CHANGED, "a log does not begin so")]
            )
        if self._discarded.get(before) == first.previous or not to_its_end:
            return []
        return [Finding(1, Problem.MISSING, _records(1, before) + " not there, and no record says why")]

    def _find_changed(self, sequence: int, words: str) -> None:
        if sequence != self._changed:  # its own hash, its follower and witnesses: once is enough
            self._changed = sequence
            self._find(sequence, Problem.CHANGED, words)

    def _find(self, sequence: int, problem: Problem, words: str) -> None:
        self._findings.append(Finding(sequence, problem, words))


def _stand_in(entry: Record) -> Record:
    """For the record before `entry`, which cannot be read."""
    return Record(entry.sequence - 1, GENESIS, 0, entry.service, "", "", "", "done", {}, entry.previous)


def _records(begin: int, end: int) -> str:
    return f"record {begin} is" if begin == end else f"records {begin} to {end} are"
