# SPDX-License-Identifier: Apache-2.0
"""Numbered events of one job, kept until the hub has stored them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from sendense.agent.v1 import backup_pb2 as pb

_PASSING = frozenset({"progress", "lease_wanted", "logged_in"})
"""Progress is soon replaced; who wants a lease asks again."""


class EventLog:
    """What a job has said so far. What is only passing is not numbered; the newest of its kind counts."""

    def __init__(self) -> None:
        self._events: deque[pb.RunBackupResponse] = deque()
        self._last = 0
        self._acked = 0
        self._passing: dict[str, pb.RunBackupResponse] = {}
        self._news = asyncio.Event()
        self._delivered = 0
        self.ended = False
        """Whether the last event is `done` or `failed`."""
        self.interrupted = False
        """Whether `interrupted` was said: nothing may come for long."""

    def append(self, event: pb.RunBackupResponse) -> None:
        """Adds what the worker said; nothing follows the last event."""
        if self.ended:
            return
        kind = event.WhichOneof("event")
        if kind in _PASSING:
            self._passing[kind] = event
        else:
            self._last += 1
            event.seq = self._last
            self._events.append(event)
            self.ended = kind in {"done", "failed"}
            self.interrupted |= kind == "interrupted"
        self._wake()

    def ack(self, seq: int) -> None:
        """The hub has stored all up to `seq`."""
        self._acked = max(self._acked, min(seq, self._last))
        while self._events and self._events[0].seq <= self._acked:
            self._events.popleft()
        self._wake()

    async def wait_drained(self) -> None:
        """Returns when it has ended, or is interrupted, and the hub knows, or has at least been sent that."""
        while not (
            (self.ended or self.interrupted) and (self._delivered >= self._last or self._acked == self._last)
        ):
            await self._news.wait()

    def continues_after(self, seq: int) -> bool:
        """Whether there is, or may still be, an event after `seq`, and all of them are here."""
        if self.ended and seq == self._last:
            return False
        return self._acked <= seq <= self._last

    async def follow(self, after_seq: int) -> AsyncGenerator[pb.RunBackupResponse, None]:
        """Events after `after_seq` as they come, to the last one; of what passes only what is new."""
        sent, shown = after_seq, dict(self._passing)
        while True:
            news = self._news
            # Before the events: a disk's last counters come with its `disk_done`, and counters never fall.
            for kind, event in list(self._passing.items()):
                if event is not shown.get(kind) and not self.ended:
                    shown[kind] = event
                    yield event
            for event in [each for each in self._events if each.seq > sent]:
                sent = event.seq
                yield event
            sent = max(sent, self._acked)  # what the hub has stored, by another stream, is not missing here
            if sent > self._delivered:
                self._delivered = sent
                self._wake()
            if self.ended and sent >= self._last:
                return
            await news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
