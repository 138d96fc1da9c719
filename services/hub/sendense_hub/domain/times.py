# SPDX-License-Identifier: Apache-2.0
"""Moments as the catalog keeps them: microseconds since 1970, UTC."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp


def now_us() -> int:
    """The wall clock."""
    return time.time_ns() // 1000


def to_timestamp(moment_us: int | None) -> Timestamp | None:
    """For a message; None stays None (the field is then unset)."""
    if moment_us is None:
        return None
    made = Timestamp()
    made.FromMicroseconds(moment_us)
    return made


def now() -> Timestamp:
    """The wall clock, for a message."""
    made = Timestamp()
    made.FromMicroseconds(now_us())
    return made


def to_us(message: Timestamp) -> int | None:
    """For the catalog; an unset field (1970) is None."""
    return message.ToMicroseconds() or None
