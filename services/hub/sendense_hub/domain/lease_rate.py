# SPDX-License-Identifier: Apache-2.0
"""How many leases an agent may ask for: each is a login, and some lines of audit logs that are not endless.

Time is passed in, in seconds of a clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Callable

PER_DISK = 2
"""Leases that each disk of an attempt is good for, more than those for its sessions."""
_MOST_DISKS = 256


class LeaseRate:
    """So many at once, and so many an hour: a bucket with tokens."""

    def __init__(self, at_once: int, per_hour: float, now_s: float) -> None:
        """It begins full."""
        self._at_once = at_once
        self._per_hour = per_hour
        self._tokens = float(at_once)
        self._seen_s = now_s

    def take(self, now_s: float) -> bool:
        """Whether there may be one more."""
        self._fill(now_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def full(self, now_s: float) -> bool:
        """Whether it is as if it had just begun."""
        self._fill(now_s)
        return self._tokens >= self._at_once

    def allow(self, more: int) -> None:
        """So many more, once."""
        self._tokens += more

    def _fill(self, now_s: float) -> None:
        grown = self._tokens + (now_s - self._seen_s) / 3600 * self._per_hour
        self._tokens = max(self._tokens, min(grown, float(self._at_once)))
        self._seen_s = now_s


def of_attempt(now_s: float) -> LeaseRate:
    """For sessions that vCenter forgets. A backup needs one for days, were it not for restarts of vCenter."""
    return LeaseRate(20, 10, now_s)


def allow_disks(rate: LeaseRate, count: int) -> None:
    """An attempt's plan has so many: VMware's library logs in for each."""
    rate.allow(PER_DISK * min(count, _MOST_DISKS))


class LeasesOfJobs:
    """Of all attempts of a job together, each of which begins anew: more than a bad link makes of it."""

    def __init__(self, clock: Callable[[], float], *, at_once: int = 600, per_hour: float = 600) -> None:
        self._clock = clock
        self._at_once = at_once
        self._per_hour = per_hour
        self._rates: dict[str, LeaseRate] = {}

    def take(self, job_id: str) -> bool:
        """Whether there may be one more."""
        now_s = self._clock()
        self._rates = {each: rate for each, rate in self._rates.items() if not rate.full(now_s)}
        rate = self._rates.setdefault(job_id, LeaseRate(self._at_once, self._per_hour, now_s))
        return rate.take(now_s)
