# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from tests.integration.tunnel.kit import Hub, echo, target

from sendense_common.tunnel import dial

pytestmark = pytest.mark.integration


async def test_bytes_come_back_as_they_were_sent(hub: Hub, short_tmp):
    sent = bytes(range(256)) * 40_000
    async with target(hub, "nbd/x", echo), dial(hub.enrol()) as tunnel:
        async with tunnel.forward("nbd/x", short_tmp / "l.sock"):
            reader, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            writer.write(sent)
            writer.write_eof()
            assert await reader.read(-1) == sent
            writer.close()


async def test_a_short_message_and_its_end_survive_the_time_before_the_channel_is_open(hub: Hub, short_tmp):
    async with target(hub, "nbd/x", echo), dial(hub.enrol()) as tunnel:
        async with tunnel.forward("nbd/x", short_tmp / "l.sock"):
            reader, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            writer.write(b"all in one packet")
            writer.write_eof()
            async with asyncio.timeout(10):
                assert await reader.read() == b"all in one packet"
            writer.close()


async def test_one_direction_ends_while_the_other_goes_on(hub: Hub, short_tmp):
    asked = asyncio.Event()

    async def end_then_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all I have to say")
        writer.write_eof()
        assert await reader.read() == b"and the answer"
        asked.set()

    async with target(hub, "nbd/x", end_then_listen), dial(hub.enrol()) as tunnel:
        async with tunnel.forward("nbd/x", short_tmp / "l.sock"):
            reader, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            async with asyncio.timeout(10):
                assert await reader.read() == b"all I have to say"
                writer.write(b"and the answer")
                writer.write_eof()
                await asked.wait()
            writer.close()
