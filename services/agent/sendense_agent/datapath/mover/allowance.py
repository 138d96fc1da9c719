# SPDX-License-Identifier: Apache-2.0
"""The rate of a copy."""

from __future__ import annotations

import time


class Allowance:
    """How much may be read now: a bucket of one second."""

    def __init__(self) -> None:
        self._rate = 0
        self._left = 0.0
        self._filled_at = time.monotonic()

    def set(self, bytes_per_second: int) -> None:
        """0 is no limit."""
        self._rate = max(0, bytes_per_second)

    def take(self, length_bytes: int) -> bool:
        """Whether so much may be read now."""
        if not self._rate:
            return True
        now = time.monotonic()
        self._left = min(self._left + (now - self._filled_at) * self._rate, max(self._rate, length_bytes))
        self._filled_at = now
        if self._left < length_bytes:
            return False
        self._left -= length_bytes
        return True
