# SPDX-License-Identifier: Apache-2.0
"""A relay on a link, for what the kernel cannot do here: latency, resets, refused connections, flipped bits.

A program of its own (`python relay.py NAME=LISTEN_PORT:HOST:PORT …`), for it runs in another network. It
takes one JSON object a line from its standard input and answers each with a line; the end of its input ends
it. Commands: {"link", "do": "pass" | "reset" | "refuse" | "delay" (with "seconds") | "flip"}.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections import deque

_PIECE_BYTES = 128 * 1024
_MOST_WAITING_BYTES = 8 * 1024 * 1024
_MOST_BEFORE_FLIP = 1024


class Link:
    """One listening port and where it leads."""

    def __init__(self, port: int, host: str, target: int) -> None:
        self._port, self._host, self._target = port, host, target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.flip = False

    async def open(self) -> None:
        """Takes connections."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._carry, "127.0.0.1", self._port, limit=_PIECE_BYTES, backlog=256
            )

    async def refuse(self) -> None:
        """Ends all connections, and takes no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """Ends all connections, as a firewall does that forgot them."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._host, self._target, limit=_PIECE_BYTES)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back, out=True), self._pump(there, writer, out=False))
        except OSError:
            pass
        finally:
            for each in (writer, back):
                self._writers.discard(each)
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, out: bool) -> None:
        loop = asyncio.get_running_loop()
        waiting: deque[tuple[float, bytes]] = deque()
        changed = asyncio.Event()
        size = 0
        ended = False

        async def send() -> None:
            nonlocal size
            while waiting or not ended:
                if not waiting:
                    changed.clear()
                    await changed.wait()
                    continue
                due, piece = waiting.popleft()
                if (wait_s := due - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                writer.write(piece)
                await writer.drain()
                size -= len(piece)
                changed.set()
            with contextlib.suppress(OSError):
                writer.write_eof()

        sending = asyncio.ensure_future(send())
        try:
            while piece := await reader.read(_PIECE_BYTES):
                if out and self.flip and len(piece) > _MOST_BEFORE_FLIP:
                    self.flip = False
                    middle = len(piece) // 2
                    piece = piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]
                waiting.append((loop.time() + self.delay_s, piece))
                size += len(piece)
                changed.set()
                while size > _MOST_WAITING_BYTES and not sending.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                if sending.done():
                    break
            ended = True
            changed.set()
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def do(self, order: dict[str, object]) -> None:
        """One command."""
        match order["do"]:
            case "pass":
                self.delay_s = 0.0
                self.flip = False
                await self.open()
            case "reset":
                self.reset()
            case "refuse":
                await self.refuse()
            case "delay":
                self.delay_s = float(str(order["seconds"]))
            case "flip":
                self.flip = True
            case unknown:
                raise ValueError(f"there is no {unknown}")


async def main(arguments: list[str]) -> None:
    """Until the end of the input."""
    links = {}
    for argument in arguments:
        name, _, rest = argument.partition("=")
        port, host, target = rest.split(":")
        links[name] = Link(int(port), host, int(target))
        await links[name].open()
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while line := await orders.readline():
        order = json.loads(line)
        await links[order["link"]].do(order)
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
