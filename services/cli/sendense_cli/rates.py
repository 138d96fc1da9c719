# SPDX-License-Identifier: Apache-2.0
"""Rates as people write them: "20MiB/s"."""

from __future__ import annotations

import re

from sendense_common.errors import invalid

NONE = "none"
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ?(KiB|MiB|GiB)(?:/s)?", re.ASCII | re.IGNORECASE)
_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def bytes_per_second(text: str) -> int:
    """What is written as "20MiB/s", "1.5GiB/s" or "none"; 0 for none.

    Raises:
        SendenseError: INVALID_REQUEST when it is written otherwise. A number without a unit is no rate:
            nobody could tell bits from bytes.
    """
    text = text.strip()
    if text.lower() == NONE:
        return 0
    found = _RATE.fullmatch(text)
    rate = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not rate:
        raise invalid(
            "rate",
            f"{text!r} is not a rate",
            remedy="Write it as 20MiB/s (KiB, MiB or GiB), or `none` for no limit.",
        )
    return rate
