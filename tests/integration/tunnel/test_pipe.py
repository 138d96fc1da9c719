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
