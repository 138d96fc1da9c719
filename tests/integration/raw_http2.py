# SPDX-License-Identifier: Apache-2.0
"""As much HTTP/2 as it takes to behave as no gRPC library does."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path

_DATA, _HEADERS, _RST_STREAM, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW = 4


class RawClient:
    """One connection; it acknowledges nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._next = 1

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._writer.write(struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream))
        self._writer.write(payload)

    def begin(self, window_bytes: int | None = None) -> None:
        """Args: window_bytes: of an answer the server may send so much."""
        self._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        asked = b"" if window_bytes is None else struct.pack(">HI", _INITIAL_WINDOW, window_bytes)
        self._frame(_SETTINGS, 0, 0, asked)

    def call(self, method: str, request: bytes | None = None) -> None:
        """Begins a call; without a request, there is one to come."""
        headers = {
            ":method": "POST", ":scheme": "http", ":path": method, ":authority": "x",
            "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        block = b"".join(
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in headers.items()
        )
        stream, self._next = self._next, self._next + 2
        self._frame(_HEADERS, _END_HEADERS, stream, block)
        if request is not None:
            self._frame(_DATA, _END_STREAM, stream, struct.pack(">BI", 0, len(request)) + request)

    async def sent(self) -> None:
        """All of it is on its way."""
        await self._writer.drain()

    async def refused(self, count: int) -> None:
        """The server has refused so many calls."""
        while count:
            header = await self._reader.readexactly(9)
            await self._reader.readexactly(int.from_bytes(header[:3], "big"))
            count -= header[3] == _RST_STREAM


@contextlib.asynccontextmanager
async def raw_client(socket: Path) -> AsyncIterator[RawClient]:
    """Connected to a unix socket."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
