# SPDX-License-Identifier: Apache-2.0
"""A unix socket that leads to a TCP port, for a program that calls a server by another name than we do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

_PIECE_BYTES = 256 * 1024
_CONNECT_WITHIN_S = 30.0


@contextlib.asynccontextmanager
async def detour(socket: Path, host: str, port: int) -> AsyncIterator[None]:
    """Passes bytes on, both ways, until the block ends; then all connections are cut, the socket is gone."""
    running: set[asyncio.Task[None]] = set()

    async def passing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        task.add_done_callback(running.discard)
        try:
            async with asyncio.timeout(_CONNECT_WITHIN_S):
                back, there = await asyncio.open_connection(host, port, limit=_PIECE_BYTES)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pass(reader, there))
                    both.create_task(_pass(back, writer))
            finally:
                there.transport.abort()
        except* (OSError, TimeoutError):
            pass  # whoever connected sees that it ends
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(passing, str(socket), limit=_PIECE_BYTES)
    try:
        yield
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        socket.unlink(missing_ok=True)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_PIECE_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
