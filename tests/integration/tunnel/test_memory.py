# SPDX-License-Identifier: Apache-2.0
"""Field failure 3: a slow target must slow its sender down, never fill the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from tests.integration.tunnel.test_supervisor import agent_of, config, gateways, prepared, supervised

from sendense_common.tunnel import dial

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

_MIB = 1024 * 1024
_PUSHED_BYTES = 1024 * _MIB
_RATE = 20_000_000
# What the gateway may grow by while all of it passes.
_FLAT_BYTES = 16 * _MIB


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


async def test_ff03_a_gigabyte_into_a_slow_target_leaves_the_gateway_flat(short_tmp: Path):
    paths, key = prepared(short_tmp)
    sink = short_tmp / "sink.sock"
    tables = json.loads((paths.state / "authorization.json").read_text())
    tables["targets"]["nbd/slow"] = str(sink)
    (paths.state / "authorization.json").write_text(json.dumps(tables))
    swallowed = 0
    finished = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads 20 MB/s, no faster."""
        nonlocal swallowed
        began = time.monotonic()
        while data := await reader.read(256 * 1024):
            swallowed += len(data)
            await asyncio.sleep(max(0.0, swallowed / _RATE - (time.monotonic() - began)))
        finished.set()
        writer.close()

    server = await asyncio.start_unix_server(swallow, str(sink), limit=256 * 1024)
    block = os.urandom(8 * _MIB)
    sizes: list[int] = []
    async with server, supervised(config(paths)), dial(agent_of(paths, key)) as tunnel:
        (gateway,) = gateways()
        local = short_tmp / "l.sock"
        async with tunnel.forward("nbd/slow", local):
            _, writer = await asyncio.open_unix_connection(str(local))
            for number in range(_PUSHED_BYTES // len(block)):
                writer.write(block)
                await writer.drain()
                if number == 4:
                    settled = resident_bytes(gateway)  # buffers and code are in use by now
                if number > 4:
                    sizes.append(resident_bytes(gateway))
            writer.write_eof()
            await asyncio.wait_for(finished.wait(), 200)
            writer.close()
    assert swallowed == _PUSHED_BYTES
    assert max(sizes) - settled <= _FLAT_BYTES
    assert settled - min(sizes) <= _FLAT_BYTES
