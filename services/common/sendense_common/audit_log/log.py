# SPDX-License-Identifier: Apache-2.0
"""The one writer of a log: a thread that puts what waits into the file, syncs it, and says so."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.audit_log import segments
from sendense_common.audit_log.catalogue import ACTS, RIGHTS
from sendense_common.audit_log.facts import checked, short
from sendense_common.audit_log.record import GENESIS, OUTCOMES, Outcome, Record
from sendense_common.audit_log.refusals import RefusalBudget
from sendense_common.audit_log.segments import Unreadable
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir
from sendense_common.service import only_one

log = logging.getLogger(__name__)

# Heads that others have seen lately are found without reading the files.
_RECENT = 10_000

Clock = Callable[[], int]
"""Microseconds since 1970."""


@dataclass(frozen=True)
class Sizes:
    """How much is kept."""

    segment_bytes: int = 8 << 20
    """A file of this size is closed."""
    segments: int = 64
    """Files, the open one included; then the oldest is removed, which is recorded."""


USUAL_SIZES = Sizes()


@dataclass(frozen=True)
class Head:
    """The newest record of a log."""

    sequence: int
    hash: bytes


@dataclass
class _Draft:
    actor: str
    act: str
    subject: str
    outcome: Outcome
    facts: dict[str, str]
    written: Future[Record]
    happened: bool = False
    """Whether it is too late to leave the act undone."""

    @property
    def is_left_undone(self) -> bool:
        """Whether it does not happen when it cannot be recorded: then no record is missing."""
        return self.act in RIGHTS and self.outcome in {"begun", "done"} and not self.happened


class AuditLog:
    """A log that is open for writing: a lasting object of its service. Closed with `close`."""

    def __init__(self, directory: Path, service: str, *, clock: Clock, sizes: Sizes = USUAL_SIZES) -> None:
        """Opens the log, or begins it; a torn end is recorded with the first record that comes.

        Args:
            directory: of this log alone; made with mode 0700.
            service: whose it is: "hub", "credentials", "agent:<site>".
            clock: tells the time.
            sizes: what is kept.

        Raises:
            SendenseError: SERVICE_UNAVAILABLE when another process writes it; INVALID_REQUEST when the
                directory cannot be used.
        """
        self.service = service
        self.directory = private_dir(directory)
        self._clock = clock
        self._sizes = sizes
        self._held = contextlib.ExitStack()
        self._held.enter_context(only_one(directory / "lock", f"writer of the audit log of {service}"))
        self._waiting: queue.SimpleQueue[_Draft | None] = queue.SimpleQueue()
        self._budget = RefusalBudget(clock)
        self._file = -1
        self._segment: Path | None = None
        self._head = Head(0, GENESIS)
        self._recent: dict[int, bytes] = {}
        self._size = self._lost = 0
        self._torn = self._prefix = b""
        self.failure = ""
        """Why the newest record could not be written; empty when it could."""
        self.listener: Callable[[Head], None] | None = None
        """Called in the writer's thread after each write."""
        self._find_end()
        self._thread = threading.Thread(target=self._write_all, name="audit-log", daemon=True)
        self._thread.start()

    @property
    def own_actor(self) -> str:
        """Who it is when the service does something by itself: "system:hub"; an agent is "agent:<site>"."""
        return self.service if self.service.startswith("agent:") else f"system:{self.service}"

    @property
    def head(self) -> Head:
        """The newest record on disk; sequence 0 before the first."""
        return self._head

    def submit(
        self,
        act: str,
        *,
        subject: str,
        outcome: Outcome,
        actor: str,
        facts: dict[str, object],
        happened: bool = False,
    ) -> Future[Record] | None:
        """Puts a record in line; the future is done when it is on disk.

        Args:
            act: see `audit_log.record`, for the next four too.
            subject: what it was done to.
            outcome: how it ended.
            actor: who.
            facts: more.
            happened: an act that changes rights is not left undone any more when this cannot be written.

        Returns:
            None when it is one refusal too many in a short time: those are counted and recorded together.

        Raises:
            ValueError, TypeError: it may not be recorded like this (`facts.checked`, `catalogue`).
        """
        if act not in ACTS:
            raise ValueError(f"{act!r} is not in the catalogue of acts")
        if outcome not in OUTCOMES:
            raise ValueError(f"{outcome!r} is no outcome")
        fine = checked(facts)
        address = fine.get("peer") or fine.get("address", "")
        if outcome == "refused" and not self._budget.take(short(actor), address):
            return None
        draft = _Draft(short(actor), act, short(subject), outcome, fine, Future(), happened)
        if skipped := self._budget.skipped():
            facts = {"count": skipped.count, "most": skipped.most, "most_count": skipped.most_count}
            self._waiting.put(self._own("log.limited", **checked(facts)))
        draft.written.set_running_or_notify_cancel()  # who waits may go; the record is written all the same
        self._waiting.put(draft)
        return draft.written

    def now_us(self) -> int:
        """By the log's clock."""
        return self._clock()

    def hash_of(self, sequence: int) -> bytes:
        """Hash of a record, as it is stored; empty when there is none. Blocks."""
        recent = self._recent.get(sequence)
        if recent is not None or not 0 < sequence <= self._head.sequence:
            return recent or b""
        segment, size = self._readable
        holding = segments.holding(self.directory, sequence)
        if segment is None or holding is None:
            return b""
        entries = segments.read_file(holding, at_most_bytes=size if holding.name == segment.name else None)
        same = (each.hash for each in entries if isinstance(each, Record) and each.sequence == sequence)
        return next(same, b"")

    def entries(self) -> Iterator[Record | Unreadable]:
        """What is on disk now. Blocks."""
        segment, size = self._readable
        return iter(()) if segment is None else segments.read(self.directory, last=segment, last_bytes=size)

    def close(self) -> None:
        """Writes what waits, and ends. Blocks."""
        self._waiting.put(None)
        self._thread.join()
        self._close_file()
        self._held.close()

    # --- in the writer's thread ---

    def _write_all(self) -> None:
        ended = False
        while not ended:
            drafts = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while True:  # what came while the disk was busy goes to it together
                    drafts.append(self._waiting.get_nowait())
            ended = None in drafts
            wanted = [draft for draft in drafts if draft is not None]
            if not wanted:
                continue
            # Whatever is wrong: without this thread everybody who records something would wait for ever.
            try:
                self._write(wanted)
            except Exception as error:  # noqa: BLE001 - they are told
                self._fail(error, wanted)
                continue
            try:
                self._after_writing()
            except Exception:
                self._close_file()  # the next record tries again
                log.exception("audit log %s: no new segment, or nobody was told", self.directory)

    def _write(self, drafts: list[_Draft]) -> None:
        if self._file < 0:
            self._find_end()
            self._open_file()
        news = [self._mended()] if self._torn else []
        if self._lost:
            news.append(self._own("log.lost", count=str(self._lost)))
        self._append([*news, *drafts])

    def _after_writing(self) -> None:
        try:
            if self._size >= self._sizes.segment_bytes:
                self._begin_segment()
        finally:
            if self.listener is not None:
                self.listener(self._head)

    def _append(self, drafts: list[_Draft]) -> None:
        """All of them in one write; on disk when it returns, and only then visible."""
        head, data, records = self._head, self._prefix, []
        for draft in drafts:
            bare = Record(
                sequence=head.sequence + 1,
                previous=head.hash,
                time_us=self._clock(),
                service=self.service,
                actor=draft.actor,
                act=draft.act,
                subject=draft.subject,
                outcome=draft.outcome,
                facts=draft.facts,
            )
            record = replace(bare, hash=bare.digest())
            records.append(record)
            data += record.to_line()
            head = Head(record.sequence, record.hash)
        whole = len(data)
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
        self._size += len(self._torn) + whole
        self._torn = self._prefix = b""
        self._readable = (self._segment, self._size)
        self._head = head
        self._lost, self.failure = 0, ""
        self._recent.update((each.sequence, each.hash) for each in records)
        while len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        for draft, record in zip(drafts, records, strict=True):
            draft.written.set_result(record)

    def _find_end(self) -> None:
        end = segments.tail(self.directory)
        self._segment = end.segment
        self._torn = end.torn
        self._head = Head(end.last.sequence, end.last.hash) if end.last else Head(0, GENESIS)
        # The line of what was torn ends first, so that the next record has one of its own.
        unfinished = end.line_open or (end.torn and not end.torn.endswith(b"\n"))
        self._prefix = b"\n" if unfinished else b""
        whole = end.segment.stat().st_size if end.segment else 0
        self._size = max(0, whole - len(end.torn))
        self._readable = (self._segment, self._size)

    def _open_file(self) -> None:
        """The newest segment, or another one when that is full."""
        if self._segment is None or (self._size >= self._sizes.segment_bytes and not self._torn):
            self._segment = self.directory / segments.name_for(self._head.sequence + 1)
            self._size, self._prefix = 0, b""
        self._file = os.open(self._segment, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _begin_segment(self) -> None:
        """After a full one; the oldest goes when there are too many, which is recorded first."""
        self._close_file()
        self._open_file()
        kept = segments.listed(self.directory)
        if len(kept) <= self._sizes.segments:
            return
        first = next(segments.read_file(kept[1]), None)
        if not isinstance(first, Record):
            log.error("audit log: %s stays: %s does not begin with a record", kept[0], kept[1])
            return
        facts = {"through": str(first.sequence - 1), "through_hash": first.previous.hex()}
        self._append([self._own("log.discarded", **facts)])
        kept[0].unlink()

    def _close_file(self) -> None:
        if self._file >= 0:
            file, self._file = self._file, -1
            with contextlib.suppress(OSError):  # what counts was synced
                os.close(file)

    def _own(self, act: str, **facts: str) -> _Draft:
        return _Draft(self.own_actor, act, self.service, "done", facts, Future())

    def _mended(self) -> _Draft:
        torn = self._torn + self._prefix
        return self._own("log.mended", bytes=str(len(torn)), sha256=hashlib.sha256(torn).hexdigest())

    def _fail(self, error: Exception, drafts: list[_Draft]) -> None:
        # What was written in part is found, and accounted for, when the file is opened again.
        self._close_file()
        self._lost += sum(not draft.is_left_undone for draft in drafts)
        cause = error.strerror if isinstance(error, OSError) else None
        self.failure = f"the audit log {self.directory} cannot be written: {cause or error}"
        for draft in drafts:
            log.error("not recorded: %s %s %s: %s", draft.actor, draft.act, draft.subject, self.failure)
            if not draft.written.done():
                draft.written.set_exception(self._unavailable())

    def _unavailable(self) -> SendenseError:
        return SendenseError(
            Reason.REASON_AUDIT_LOG_UNAVAILABLE,
            self.failure,
            remedy="Make room on the disk it is on, or mend what is said to be wrong. Until then nothing "
            "that changes rights is done.",
        )
