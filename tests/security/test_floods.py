# SPDX-License-Identifier: Apache-2.0
"""Connections that never log in: a thousand half-open, a hundred slow ones, and a copy that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest
from tests.integration.tunnel.kit import until
from tests.integration.tunnel.test_supervisor import agent_of, config, gateways, prepared, supervised

from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths
from sendense_common.tunnel import TunnelConfig, dial
from sendense_hub.gateway.limits import Limits

pytestmark = pytest.mark.integration

_BLOCK = bytes(range(256)) * 256
_HALF_OPEN, _SLOW = 1000, 100
# Under a flood, on a machine that others use as well.
_LONGEST_SILENCE_S = 10.0


@contextlib.contextmanager
def half_open(port: int, count: int, addresses: Iterator[str]) -> Iterator[list[socket.socket]]:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        made = []
        for address in itertools.islice(addresses, count):
            sock = stack.enter_context(socket.socket())
            sock.bind((address, 0))
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            made.append(sock)
        yield made


@contextlib.asynccontextmanager
async def slow(port: int, count: int, address: str) -> AsyncIterator[None]:
    """Connections that say their version, a letter a second, for ever."""

    async def dribble() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
                with contextlib.closing(writer):
                    for letter in itertools.chain(b"SSH-2.0-", itertools.repeat(ord("x"))):
                        writer.write(bytes([letter]))
                        await asyncio.sleep(1)
                        if reader.at_eof():
                            break
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(dribble()) for _ in range(count)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def copying(agent: TunnelConfig, paths: HubPaths, directory: Path) -> AsyncIterator[list[float]]:
    """A channel that carries blocks there and back; gives when each arrived."""
    arrivals = [time.monotonic()]

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(_BLOCK)
            assert await reader.readexactly(len(_BLOCK)) == _BLOCK
            arrivals.append(time.monotonic())

    async with dial(agent) as tunnel, tunnel.forward("nbd/x", directory / "l.sock"):
        reader, writer = await asyncio.open_unix_connection(str(directory / "l.sock"))
        work = asyncio.create_task(copy(reader, writer))
        try:
            yield arrivals
            assert not work.done(), "the copy broke"
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            writer.transport.abort()


@contextlib.asynccontextmanager
async def hub(directory: Path, limits: Limits) -> AsyncIterator[TunnelConfig]:
    """With two gateways; gives the agent of a site."""
    paths, key = prepared(directory)
    echo = directory / "echo.sock"
    table = paths.state / "authorization.json"
    table.write_text(table.read_text().replace('"targets": {}', f'"targets": {{"nbd/x": "{echo}"}}'))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, str(echo)):
        async with supervised(dataclasses.replace(config(paths, gateways=2), limits=limits)):
            yield agent_of(paths, key)


async def test_a_thousand_half_open_and_a_hundred_slow_connections_stop_no_copy_and_no_login(
    short_tmp: Path,
):
    async with hub(short_tmp, Limits()) as agent:
        paths = HubPaths(short_tmp / "state", short_tmp / "run")
        async with copying(agent, paths, short_tmp) as arrivals:
            flood = itertools.repeat("127.0.0.1")  # where the site is, too
            with half_open(agent.port, _HALF_OPEN, flood):
                async with slow(agent.port, _SLOW, "127.0.0.3"):
                    began = time.monotonic()
                    before = len(arrivals)
                    async with dial(agent):  # another mover of the site, say
                        pass
                    await until(lambda: len(arrivals) > before + 50, "the copy goes on", 60)
                    await asyncio.sleep(max(0.0, began + 3 - time.monotonic()))
            gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
            assert max(gaps) < _LONGEST_SILENCE_S
        assert len(gateways()) == 2, "no gateway died"


async def test_logins_that_do_not_end_are_ended_and_others_get_in(short_tmp: Path):
    limits = Limits(logins=20, logins_per_address=10, login_timeout_s=3.0)
    async with hub(short_tmp, limits) as agent:
        everywhere = (f"127.0.1.{1 + number % 200}" for number in itertools.count())
        with half_open(agent.port, _HALF_OPEN, everywhere) as flood:
            await until(
                lambda: sum(map(_ended, flood)) >= _HALF_OPEN - 2 * limits.logins, "most are refused", 60
            )
            for attempt in range(100):
                try:
                    async with dial(agent):
                        break
                except SendenseError:  # all places are taken, for three seconds
                    assert attempt < 99
                    await asyncio.sleep(0.2)
            await until(lambda: all(map(_ended, flood)), "nobody of them is left", 60)


async def test_a_connection_that_shows_key_after_key_is_closed(short_tmp: Path):
    async with hub(short_tmp, Limits()) as agent:
        keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(20)]
        with pytest.raises(asyncssh.DisconnectError, match="too many keys"):
            await asyncssh.connect(
                "127.0.0.1",
                agent.port,
                username=agent.agent_id,
                client_keys=keys,
                known_hosts=None,
                config=None,
            )


def _ended(sock: socket.socket) -> bool:
    """Whether the far end closed it; what it said before is thrown away."""
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
