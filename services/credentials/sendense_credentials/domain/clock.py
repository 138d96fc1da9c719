# SPDX-License-Identifier: Apache-2.0
"""Time, passed in so that tests can choose it."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Microseconds since 1970, UTC."""


def system_clock() -> int:
    """What the system says."""
    return time.time_ns() // 1000
