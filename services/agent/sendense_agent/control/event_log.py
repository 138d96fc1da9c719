# SPDX-License-Identifier: Apache-2.0
"""Numbered events of one job, kept until the hub has stored them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from sendense.agent.v1 import backup_pb2 as pb


class EventLog:
    """What a job has said so far. Progress is not numbered, not kept, and only the newest counts."""

    def __init__(self) -> None:
        self._events: deque[pb.RunBackupResponse] = deque()
        self._last = 0
        self._acked = 0
        self._progress: pb.RunBackupResponse | None = None
        self._news = asyncio.Event()
        self._delivered = False
        self.ended = False
        """Whether the last event is `done` or `failed`."""

    def append(self, event: pb.RunBackupResponse) -> None:
        """Adds what the worker said; nothing follows the last event."""
        if self.ended:
            return
        if event.WhichOneof("event") == "progress":
            self._progress = event
        else:
            self._last += 1
            event.seq = self._last
            self._events.append(event)
            self.ended = event.WhichOneof("event") in {"done", "failed"}
        self._wake()

    def ack(self, seq: int) -> None:
        """The hub has stored all up to `seq`."""
        self._acked = max(self._acked, min(seq, self._last))
        while self._events and self._events[0].seq <= self._acked:
            self._events.popleft()
        self._wake()

    async def wait_drained(self) -> None:
        """Returns when it has ended and the hub knows, or at least has been sent the last event."""
        while not (self.ended and (self._delivered or self._acked == self._last)):
            await self._news.wait()

    def continues_after(self, seq: int) -> bool:
        """Whether there is, or may still be, an event after `seq`, and all of them are here."""
        if self.ended and seq == self._last:
            return False
        return self._acked <= seq <= self._last

    async def follow(self, after_seq: int) -> AsyncGenerator[pb.RunBackupResponse, None]:
        """Events after `after_seq` as they come, to the last one; of progress only what is new."""
        sent, shown = after_seq, self._progress
        while True:
            news = self._news
            # Before the events: a disk's last counters come with its `disk_done`, and counters never fall.
            if self._progress is not shown and not self.ended:
                shown = self._progress
                assert shown is not None
                yield shown
            for event in [each for each in self._events if each.seq > sent]:
                sent = event.seq
                yield event
            sent = max(sent, self._acked)  # what the hub has stored, by another stream, is not missing here
            if self.ended and sent >= self._last:
                self._delivered = True
                self._wake()
                return
            await news.wait()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
