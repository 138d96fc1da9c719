# SPDX-License-Identifier: Apache-2.0
"""Real qemu-nbd behind the gateway, real clients in front of the agent's local socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.tunnel.kit import Hub, echo, target, until

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.tunnel import dial

pytestmark = pytest.mark.integration

_SIZE_BYTES = 8 * 1024 * 1024 + 512


@contextlib.asynccontextmanager
async def served_disk(directory: Path) -> AsyncIterator[Path]:
    """A raw disk behind qemu-nbd; yields the socket."""
    disk, sock = directory / "d.raw", directory / "q.sock"
    with disk.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    server = await asyncio.create_subprocess_exec(
        "qemu-nbd",
        "--persistent",
        "--shared=3",
        "--format=raw",
        f"--socket={sock}",
        "--export-name=e1",
        str(disk),
    )
    try:
        await until(sock.exists, "qemu-nbd listens")
        yield sock
    finally:
        await process.stop(server, grace_s=5)


async def output_of(*command: str) -> str:
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode == 0, command
    return out.decode()


async def test_ff03_300_server_first_handshakes(hub: Hub, short_tmp: Path):
    """NBD servers speak first: no greeting may be lost between the socket and the channel."""
    async with served_disk(short_tmp) as sock, dial(hub.enrol()) as tunnel:
        hub.authorization.targets["nbd/e1"] = sock
        async with tunnel.forward("nbd/e1", short_tmp / "l.sock"):
            for _ in range(300):
                async with asyncio.timeout(10):
                    reader, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
                    greeting = await reader.readexactly(18)
                    writer.close()
                    await writer.wait_closed()
                assert greeting[:16] == b"NBDMAGICIHAVEOPT"


async def test_ff07_nbdinfo_answers_on_the_agents_side(hub: Hub, short_tmp: Path):
    async with served_disk(short_tmp) as sock, dial(hub.enrol()) as tunnel:
        hub.authorization.targets["nbd/e1"] = sock
        local = short_tmp / "l.sock"
        async with tunnel.forward("nbd/e1", local):
            told = json.loads(await output_of("nbdinfo", "--json", f"nbd+unix:///e1?socket={local}"))
            assert told["exports"][0]["export-size"] == _SIZE_BYTES
            assert local.stat().st_mode & 0o777 == 0o600
        assert not local.exists()


async def test_a_real_copy_is_identical_and_its_wire_bytes_are_real(hub: Hub, short_tmp: Path):
    source = short_tmp / "source.raw"
    source.write_bytes(bytes((n * n) % 251 for n in range(_SIZE_BYTES)))
    async with served_disk(short_tmp) as sock, dial(hub.enrol()) as tunnel:
        hub.authorization.targets["nbd/e1"] = sock
        local = short_tmp / "l.sock"
        async with tunnel.forward("nbd/e1", local):
            before = tunnel.wire_bytes_sent()
            await output_of("nbdcopy", str(source), f"nbd+unix:///e1?socket={local}")
            sent = tunnel.wire_bytes_sent() - before
    assert (short_tmp / "d.raw").read_bytes() == source.read_bytes()
    # The pattern repeats every 251 bytes: zstd makes it small, but it cannot vanish.
    assert 1_000 < sent < _SIZE_BYTES // 4


async def test_an_open_that_the_hub_refuses_names_its_reason(hub: Hub, short_tmp: Path):
    async with dial(hub.enrol()) as tunnel:
        async with tunnel.forward("nbd/somebody-elses", short_tmp / "l.sock") as forward:
            reader, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            assert await reader.read() == b""
            writer.close()
            assert forward.refusal is not None
            assert forward.refusal.reason == Reason.REASON_TUNNEL_REFUSED
            assert "no job of yours" in forward.refusal.message
        # The connection itself is unharmed.
        async with target(hub, "credentials", echo), tunnel.forward("credentials", short_tmp / "c.sock"):
            reader, writer = await asyncio.open_unix_connection(str(short_tmp / "c.sock"))
            writer.write(b"still here")
            writer.write_eof()
            assert await reader.read() == b"still here"
            writer.close()
