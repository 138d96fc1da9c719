# SPDX-License-Identifier: Apache-2.0
"""How many refusals are recorded one by one: who is refused must not fill the disk nor hide the rest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_NAMED = (1000, 6_000_000)
"""At once, and microseconds for one more."""
_NAMELESS = (100, 60_000_000)
_NAMELESS_TOGETHER = _NAMED
_MOST_KEPT = 256


@dataclass(frozen=True)
class Skipped:
    """Refusals that were not recorded."""

    count: int
    most: str
    """Whose most of them are: an actor, or the address of one without a name."""
    most_count: int


class _Bucket:
    def __init__(self, limits: tuple[int, int], now_us: int) -> None:
        self._burst, self._every_us = limits
        self.left = float(self._burst)
        self._last_us = now_us

    def fill(self, now_us: int) -> None:
        """Steps of the clock are borne."""
        self.left = min(self._burst, self.left + max(0, now_us - self._last_us) / self._every_us)
        self._last_us = now_us


class RefusalBudget:
    """A thousand at once, then ten a minute, for each who has a name; the rest is counted. Any thread.

    All without a name, who can invent as many as they like, share one such budget; of it one address, or one
    claimed name where no address is known, has a hundred at once, then one a minute.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        """Args: clock: microseconds."""
        self._clock = clock
        self._named: dict[str, _Bucket] = {}
        self._nameless: dict[str, _Bucket] = {}
        self._all_nameless = _Bucket(_NAMELESS_TOGETHER, clock())
        self._skipped: Counter[str] = Counter()
        self._skipped_count = 0
        self._lock = threading.Lock()

    def take(self, actor: str, address: str = "") -> bool:
        """Whether one more is recorded.

        Args:
            actor: who was refused.
            address: where from, with or without a port; counts for who has no name.
        """
        nameless = actor == "nobody" or actor.startswith("unproven:")
        who = (_host(address) or actor) if nameless else actor
        with self._lock:
            now_us = self._clock()
            if nameless:
                buckets = [_of(self._nameless, who, _NAMELESS, now_us), self._all_nameless]
            else:
                buckets = [_of(self._named, who, _NAMED, now_us)]
            for bucket in buckets:
                bucket.fill(now_us)
            if any(bucket.left < 1 for bucket in buckets):
                self._skipped_count += 1
                if who in self._skipped or len(self._skipped) < _MOST_KEPT:
                    self._skipped[who] += 1
                return False
            for bucket in buckets:
                bucket.left -= 1
            return True

    def skipped(self) -> Skipped | None:
        """What was not, since this was asked last."""
        with self._lock:
            if not self._skipped_count:
                return None
            ((most, count),) = self._skipped.most_common(1)
            told = Skipped(self._skipped_count, most, count)
            self._skipped.clear()
            self._skipped_count = 0
            return told


def _of(kept: dict[str, _Bucket], who: str, limits: tuple[int, int], now_us: int) -> _Bucket:
    """Whose turn was longest ago is forgotten when there are too many."""
    bucket = kept.pop(who, None) or _Bucket(limits, now_us)
    kept[who] = bucket
    if len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
    return bucket


def _host(address: str) -> str:
    host, _, port = address.rpartition(":")
    return host if host and port.isdecimal() else address
