# SPDX-License-Identifier: Apache-2.0
"""Heads of logs, kept where the logs are not: a log that was cut or made anew contradicts them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

from sendense_common.audit_log._current import record, system_actor
from sendense_common.audit_log.log import AuditLog, Head

log = logging.getLogger(__name__)

_AT_MOST_EVERY_S = 1.0
_AGAIN_AFTER_S = 10.0


Ask = Callable[[int], Awaitable[tuple[Head, bytes]]]


@dataclass(frozen=True)
class SeenHead:
    """The newest record of a log, as it was seen."""

    log: str
    sequence: int
    hash: bytes
    seen_time_us: int
    contradiction: str = ""
    """What contradicts it since. It then stays as it is: it is the proof."""

    def compared(self, now: Head, known_hash: bytes) -> str:
        """What is wrong with a log whose head is `now`; empty when it still has the record that was seen.

        Args:
            now: its head.
            known_hash: hash of the record with the sequence that was seen; empty when there is none.
        """
        if known_hash == self.hash:
            return ""
        if now.sequence < self.sequence:
            return f"it ends at record {now.sequence}; record {self.sequence} was there"
        return f"record {self.sequence} is another one than it was"


class HeadStore(Protocol):
    """A database that keeps heads, one for each log."""

    async def load(self) -> Sequence[SeenHead]:
        """All."""
        ...

    async def keep(self, head: SeenHead) -> None:
        """In the place of the one of the same log."""
        ...

    async def forget(self, of_log: str) -> None:
        """The one of this log."""
        ...


class Witness:
    """What one service has seen of the logs."""

    def __init__(self, own: AuditLog, store: HeadStore) -> None:
        """Args: own: the service's log; store: a database of the same service."""
        self._own = own
        self._store = store
        self._news = asyncio.Event()
        self._seeing: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def heads(self) -> Sequence[SeenHead]:
        """All that were seen."""
        return await self._store.load()

    async def see(self, of_log: str, ask: Ask) -> str:
        """Compares the head of a log with the one seen before, and keeps it when it follows.

        Args:
            of_log: whose log.
            ask: gets the sequence that was seen (0: none); answers with the head and the hash that this
                record has now.

        Returns:
            What contradicts; empty: nothing.
        """
        async with self._seeing[of_log]:
            before = next((each for each in await self.heads() if each.log == of_log), None)
            now, known_hash = await ask(before.sequence if before else 0)
            if before is not None and before.contradiction:
                return before.contradiction
            words = before.compared(now, known_hash) if before else ""
            if before is not None and words:
                log.error("the audit log of %s is not the one that was seen: %s", of_log, words)
                await self._store.keep(replace(before, contradiction=words))
                facts: dict[str, Any] = {"seen": before.sequence, "words": words}
                await record("log.contradicts", subject=of_log, actor=system_actor(), **facts)
            elif now.sequence > (before.sequence if before else 0):
                await self._store.keep(SeenHead(of_log, now.sequence, now.hash, self._own.now_us()))
            return words

    async def accept(self, of_log: str) -> bool:
        """Forgets what contradicts: the next head that is seen counts. Whether there was anything."""
        async with self._seeing[of_log]:
            before = next((each for each in await self.heads() if each.log == of_log), None)
            if before is None or not before.contradiction:
                return False
            await record(
                "log.accept",
                subject=of_log,
                seen=before.sequence,
                seen_hash=before.hash.hex(),
                words=before.contradiction,
            )
            await self._store.forget(of_log)
        if of_log == self._own.service:
            await self.look_at_own()
        return True

    async def watch_own(self) -> NoReturn:
        """Keeps the head of the service's own log, within a second, until it is cancelled."""
        loop = asyncio.get_running_loop()

        def wake(_: Head) -> None:
            loop.call_soon_threadsafe(self._news.set)

        self._own.listener = wake
        try:
            while True:
                self._news.clear()
                pause_s = _AT_MOST_EVERY_S
                try:
                    await self.look_at_own()
                except Exception:
                    log.exception("the head of the audit log is kept in %.0f s", _AGAIN_AFTER_S)
                    pause_s = _AGAIN_AFTER_S
                await asyncio.sleep(pause_s)
                await self._news.wait()
        finally:
            self._own.listener = None

    async def look_at_own(self) -> str:
        """Now; what contradicts, as `see`."""

        async def ask(known_sequence: int) -> tuple[Head, bytes]:
            return self._own.head, await asyncio.to_thread(self._own.hash_of, known_sequence)

        return await self.see(self._own.service, ask)
