# SPDX-License-Identifier: Apache-2.0
"""Connections of agents that nobody knows yet: few at a time, and not for long."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

from sendense_hub.gateway.limits import Limits


class Stranger(Protocol):
    """A connection."""

    @property
    def address(self) -> str:
        """Where it comes from."""

    def end(self, why: str) -> None:
        """Closes it."""


class Strangers:
    """Those of this gateway."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._deadlines: dict[Stranger, asyncio.TimerHandle] = {}

    def __iter__(self) -> Iterator[Stranger]:
        return iter(list(self._deadlines))

    def let_in(self, one: Stranger) -> bool:
        """Whether there is room for one more; it is closed when its time is over."""
        same = sum(each.address == one.address for each in self._deadlines)
        if len(self._deadlines) >= self._limits.strangers or same >= self._limits.strangers // 2:
            return False
        self._deadlines[one] = asyncio.get_running_loop().call_later(
            self._limits.stranger_for_s, one.end, "the time to enrol is over, come again"
        )
        return True

    def gone(self, one: Stranger) -> None:
        """It was closed."""
        deadline = self._deadlines.pop(one, None)
        if deadline is not None:
            deadline.cancel()
