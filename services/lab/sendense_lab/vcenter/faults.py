# SPDX-License-Identifier: Apache-2.0
"""Faults on order: which call, from which time on, how often."""

from __future__ import annotations

import threading
from dataclasses import dataclass

FOLDER_FAULTS = ("401", "500", "drop", "whole")
"""What reading files can fail with; "drop" ends the connection half way; "whole" answers 200 with the whole
file, whatever range was asked for, as a proxy does that drops the header."""


@dataclass
class PlannedFault:
    """One order."""

    operation: str
    """Method of the API ("CreateSnapshot_Task": the call fails), "task CreateSnapshot_Task" (the call gives
    a task, which fails), or "GET /folder"."""
    fault: str
    """Type ("vim.fault.TaskInProgress"); for "GET /folder": one of FOLDER_FAULTS."""
    message: str = ""
    at_call: int = 1
    """Number of the call, from the order on, that is the first to fail."""
    times: int = 1
    """How many calls fail."""


class FaultPlan:
    """All orders."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[PlannedFault] = []

    def add(self, planned: PlannedFault) -> None:
        """From now on."""
        with self._lock:
            self._planned.append(planned)

    def clear(self) -> None:
        """No more."""
        with self._lock:
            self._planned.clear()

    def due(self, operation: str) -> PlannedFault | None:
        """What this call of `operation` fails with, if it does."""
        with self._lock:
            mine = [planned for planned in self._planned if planned.operation == operation]
            for planned in mine:
                planned.at_call -= 1
            for planned in mine:
                if planned.at_call <= 0 and planned.times > 0:
                    planned.times -= 1
                    return planned
        return None
