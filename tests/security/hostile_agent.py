# SPDX-License-Identifier: Apache-2.0
"""An agent with a good key that misbehaves: `python -m tests.security.hostile_agent KIND PORT KEY HOST_KEY`.

It says "begun" when it does, and goes on until it is killed or thrown out, which it says too.
"""

from __future__ import annotations

import asyncio
import os
import sys
import types
from collections.abc import Awaitable, Callable
from typing import Any

import asyncssh
from asyncssh.packet import Boolean, String
from backports import zstd

from sendense_common.tunnel import compression_algs

_MOST = 0x7FFFFFFF
_MIB = 1024 * 1024


async def never_reads(conn: Any) -> None:
    """Opens the largest window there is, and takes nothing out of its socket."""
    await _flood(conn)
    conn._transport.pause_reading()


async def stops_in_key_exchange(conn: Any) -> None:
    """Reads, but never ends the key exchange that it began: what is sent meanwhile must be put aside."""
    await _flood(conn)
    conn._recv_data = lambda: None
    conn.data_received = lambda data, datatype=None: None
    conn._send_kexinit()


async def sends_a_bomb(conn: Any) -> None:
    """One small packet that is 1 GiB when it is decompressed."""

    stream = zstd.ZstdCompressor(level=1)
    block = bytes(_MIB)
    bomb = b"".join(stream.compress(block) for _ in range(1024)) + stream.flush()
    conn._compressor = types.SimpleNamespace(compress=lambda _: bomb)
    conn.send_debug("boom")


async def asks_without_listening(conn: Any) -> None:
    """Requests whose replies it does not read, as fast as it can."""
    conn._transport.pause_reading()

    async def ask() -> None:
        while True:
            for _ in range(200):
                conn.send_packet(80, String(b"x" * 1000), Boolean(True))  # MSG_GLOBAL_REQUEST
            await asyncio.sleep(0.01 if conn._transport.get_write_buffer_size() > _MIB else 0)

    conn.asking = asyncio.create_task(ask())


async def opens_all_it_can(conn: Any) -> None:
    """Channels, and again, whether they are granted or not."""

    async def again() -> None:
        while True:
            try:
                await conn.open_unix_connection("nbd/flood", window=_MOST, encoding=None)
            except asyncssh.ChannelOpenError:
                await asyncio.sleep(0)

    conn.asking = [asyncio.create_task(again()) for _ in range(20)]


KINDS: dict[str, Callable[[Any], Awaitable[None]]] = {
    each.__name__: each
    for each in (never_reads, stops_in_key_exchange, sends_a_bomb, asks_without_listening, opens_all_it_can)
}


async def _flood(conn: Any) -> None:
    """A channel on which there is always more to come."""
    reader, _ = await conn.open_unix_connection("nbd/flood", window=_MOST, encoding=None)
    assert await reader.readexactly(_MIB)


async def main(kind: str, port: str, key: str, host_key: str) -> None:
    async with asyncssh.connect(
        "127.0.0.1", int(port), username="hostile", client_keys=[key],
        known_hosts=([asyncssh.import_public_key(host_key)], [], []), config=None, agent_path=None,
        compression_algs=compression_algs(zstd=True),
    ) as conn:  # fmt: skip
        await KINDS[kind](conn)
        os.write(1, b"begun\n")
        await conn.wait_closed()
    os.write(1, b"thrown out\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
