# SPDX-License-Identifier: Apache-2.0
"""What happens at a certain call: somebody removes a snapshot while it is read, a password changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PlannedEvent:
    """One order."""

    at: str
    """Method of the API ("CreateSnapshot_Task"), "task METHOD" or "GET /folder": before it is answered."""
    command: str
    """Of the lab."""
    call: int = 1
    """Number of the call, from the order on."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the command."""


class EventPlan:
    """All orders that are still to come."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[PlannedEvent] = []
        self.play: Callable[[PlannedEvent], None] = lambda event: None
        """Does what one says."""

    def add(self, planned: PlannedEvent) -> None:
        """From now on."""
        with self._lock:
            self._planned.append(planned)

    def clear(self) -> None:
        """No more."""
        with self._lock:
            self._planned.clear()

    def waiting(self) -> list[PlannedEvent]:
        """Those that have not happened yet."""
        with self._lock:
            return list(self._planned)

    def happen(self, operation: str) -> None:
        """A call of `operation` is about to be answered."""
        due = []
        with self._lock:
            for planned in self._planned:
                if planned.at == operation:
                    planned.call -= 1
                    if planned.call <= 0:
                        due.append(planned)
            self._planned = [each for each in self._planned if not any(each is one for one in due)]
        for planned in due:
            self.play(planned)
