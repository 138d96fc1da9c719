# SPDX-License-Identifier: Apache-2.0
"""What control and worker say to each other: framed google.protobuf.Any, requests in, answers out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from sendense_agent.datapath import framing

M = TypeVar("M", bound=Message)


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> None:
        """Args: writer: None for a worker, which writes to its standard output."""
        self._reader = reader
        self._writer = writer
        # One thread: what several tasks say at once, or say after one that was cancelled, must not mix.
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="channel") if writer is None else None

    @classmethod
    async def of_worker(cls) -> Channel:
        """The worker's end: standard input and output."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2**26)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
        return cls(reader, None)

    async def receive(self) -> AnyMessage | None:
        """The next message; None when the other end is gone."""
        return await framing.read(self._reader, AnyMessage)

    async def send(self, message: Message) -> None:
        """Says something; an end that is gone hears nothing, which its silence will show."""
        wrapped = AnyMessage()
        wrapped.Pack(message)
        data = framing.frame(wrapped)
        with contextlib.suppress(ConnectionError):
            if self._writer is None:
                await asyncio.get_running_loop().run_in_executor(self._writing, _write_all, data)
            else:
                self._writer.write(data)
                await self._writer.drain()


def unpack(wrapped: AnyMessage, kind: type[M]) -> M | None:
    """The message, if it is of that kind."""
    message = kind()
    return message if wrapped.Unpack(message) else None


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]
