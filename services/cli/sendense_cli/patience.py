# SPDX-License-Identifier: Apache-2.0
"""Waits for a hub that does not answer, as while it starts again, and says so once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import words
from sendense_common.errors import SendenseError

MOST_S = 300.0
"""How long a hub may take to come back."""
AGAIN_AFTER_S = 0.5
_PASSES = {
    Reason.REASON_SERVICE_UNAVAILABLE,
    Reason.REASON_SERVICE_STOPPING,
    Reason.REASON_DEADLINE_EXCEEDED,
}


class Patience:
    """Of one command that watches a job."""

    def __init__(
        self,
        say: Callable[[str], object],
        *,
        most_s: float = MOST_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`say` is told when the waiting begins and when it has ended, a line each."""
        self._say = say
        self._most_s = most_s
        self._clock = clock
        self._sleep = sleep
        self._away_since: float | None = None

    def heard(self) -> None:
        """It answers."""
        if self._away_since is not None:
            self._away_since = None
            self._say("the hub answers again")

    async def wait(self, error: SendenseError) -> None:
        """Returns when it should be asked again, after it failed with `error`.

        Raises:
            SendenseError: `error`, if waiting does not help; SERVICE_UNAVAILABLE or what else it was, if
                nothing was `heard` for so long.
        """
        if error.reason not in _PASSES:
            raise error
        most = words.duration(self._most_s)
        if self._away_since is None:
            self._away_since = self._clock()
            self._say(f"{error.message}. The job goes on there; waiting for the hub, {most} at most")
        if self._clock() - self._away_since >= self._most_s:
            raise SendenseError(
                error.reason, f"{error.message}; it was waited for {most}", remedy=error.remedy
            ) from error
        await self._sleep(AGAIN_AFTER_S)
