# SPDX-License-Identifier: Apache-2.0
"""One byte string for a list of fields, so that both ends sign or authenticate the same thing."""

from __future__ import annotations


def canonical(purpose: str, *fields: str | int | bytes) -> bytes:
    """The fields as bytes that no other list of fields has, under a purpose that no other use has.

    Each field is preceded by its length (4 bytes, big-endian). Text is UTF-8; an integer is 8 bytes,
    big-endian, two's complement.
    """
    parts = []
    for field in (purpose, *fields):
        if isinstance(field, int):
            data = field.to_bytes(8, "big", signed=True)
        else:
            data = field.encode() if isinstance(field, str) else field
        parts += [len(data).to_bytes(4, "big"), data]
    return b"".join(parts)
