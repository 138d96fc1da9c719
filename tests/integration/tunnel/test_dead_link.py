# SPDX-License-Identifier: Apache-2.0
"""A link that dies in silence, and comes back: noticed, tried again soon, taken over at once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.tunnel.kit import reverse_socket, running_hub, until

from sendense_common.tunnel import Backoff, Tunnel, keep_connected

pytestmark = pytest.mark.integration

_GREETING = b"the agent\n"


class Way:
    """TCP to the hub. Cut, it swallows bytes and answers no SYN: the queue of its listener is full."""

    def __init__(self, hub_port: int) -> None:
        self._hub_port = hub_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._fillers: list[socket.socket] = []
        self._cut = False
        self._listening = socket.socket()
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen(0)
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())

    async def cut(self) -> None:
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        for task in self._tasks:
            task.cancel()  # and their sockets stay open
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def mend(self) -> None:
        """For new connections; those that were cut stay dead."""
        for filler in self._fillers:
            filler.close()
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listening)
            reader, writer = await asyncio.open_connection(sock=sock)
            back, there = await asyncio.open_connection("127.0.0.1", self._hub_port)
            self._writers += [writer, there]
            for source, target in ((reader, there), (back, writer)):
                self._tasks.add(asyncio.create_task(self._pass(source, target)))

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
            target.close()

    async def close(self) -> None:
        for task in (self._accepting, *self._tasks):
            task.cancel()
        await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        for sock in (self._listening, *self._fillers):
            sock.close()
        await asyncio.sleep(0)


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_GREETING)
    writer.close()


async def test_a_link_that_dies_in_silence_is_noticed_and_the_new_connection_takes_over_at_once(
    short_tmp: Path,
):
    """The hub holds the old connection for good: it would notice only after half a minute."""
    ups: list[Tunnel] = []
    stopping = asyncio.Event()

    @contextlib.asynccontextmanager
    async def up(tunnel: Tunnel) -> AsyncIterator[None]:
        await tunnel.publish(short_tmp / "agent.sock")
        ups.append(tunnel)
        yield

    agent_server = await asyncio.start_unix_server(_greet, str(short_tmp / "agent.sock"))
    async with running_hub(short_tmp) as hub:
        assert hub.end is not None
        way = Way(hub.port)
        config = dataclasses.replace(hub.enrol(), port=way.port, connect_timeout_s=0.4, keepalive_s=0.3)
        backoff = Backoff(longest_s=0.5, rng=random.Random(1))
        agent = asyncio.create_task(keep_connected(config, up, stopping, backoff=backoff))
        try:
            await until(lambda: len(ups) == 1, "the agent is connected")
            await way.cut()
            await until(lambda: ups[0].closed, "the agent notices", 10)
            await asyncio.sleep(1.5)  # a SYN of now and then would be sent again a second later, two, four …
            assert len(ups) == 1
            began = asyncio.get_running_loop().time()
            way.mend()
            await until(lambda: len(ups) == 2, "the agent is connected again", 20)
            assert asyncio.get_running_loop().time() - began < 6
            reader, writer = await asyncio.open_unix_connection(str(reverse_socket(hub)))
            assert await asyncio.wait_for(reader.readline(), 10) == _GREETING
            writer.close()
            end = hub.end
            await until(lambda: end.connections == 1, "the hub has let the old connection go", 10)
        finally:
            stopping.set()
            await asyncio.gather(agent, return_exceptions=True)
            await way.close()
            agent_server.close()
