# SPDX-License-Identifier: Apache-2.0
"""Messages between processes of one agent: each with its length in front (4 bytes, little-endian)."""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)

_LENGTH = struct.Struct("<I")
_LONGEST_BYTES = 64 * 1024 * 1024


def frame(message: Message) -> bytes:
    """A message as it is written."""
    body = message.SerializeToString()
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader, kind: type[M]) -> M | None:
    """The next message; None at the end, also when it comes in the middle of a message."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > _LONGEST_BYTES:
            raise ValueError(f"a message of {length} bytes")
        return kind.FromString(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
