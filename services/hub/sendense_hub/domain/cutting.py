# SPDX-License-Identifier: Apache-2.0
"""Texts of others are kept only so far."""

from __future__ import annotations


def cut(text: str, most_bytes: int) -> str:
    """The text, or the beginning of it and "…": as UTF-8 at most so many bytes (3 or more)."""
    # No character has less than a byte: what is far too long is not encoded as a whole.
    data = text[: most_bytes + 1].encode(errors="replace")
    if len(data) <= most_bytes:
        return text
    return data[: most_bytes - 3].decode(errors="ignore") + "…"
