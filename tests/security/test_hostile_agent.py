# SPDX-License-Identifier: Apache-2.0
"""An agent that is hostile, or frozen, costs its gateway little memory and another agent little time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.tunnel.test_memory import resident_bytes
from tests.integration.tunnel.test_supervisor import agent_of, config, gateways, prepared, supervised
from tests.security.hostile_agent import KINDS

from sendense_common import process
from sendense_common.tunnel import dial, ensure_key, fingerprint
from sendense_hub.gateway.limits import Limits
from sendense_hub.supervisor import SupervisorConfig

pytestmark = pytest.mark.integration

log = logging.getLogger(__name__)

_MIB = 1024 * 1024
_BLOCK = os.urandom(_MIB)
# Beyond what is in use when both agents work: windows, packets, malloc's own.
_GROWS_BYTES = 64 * _MIB
_MEASURE_S = 0.8
_MEASURES = 20
# The machine is shared by both agents and the test: an equal share would be half.
_SLOWEST_SHARE = 0.15


async def _flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Has always more to say."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(_BLOCK)
            await writer.drain()


async def _swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(_MIB):
            pass
    writer.close()


class Stage:
    """A hub with one gateway, an honest agent at work and what a hostile one needs."""

    def __init__(self, made: SupervisorConfig, hostile_key: Path, gateway: int) -> None:
        self.made = made
        self.gateway = gateway
        self.moved_bytes = 0
        self._hostile_key = hostile_key

    async def speed(self) -> float:
        """MiB/s of the honest agent."""
        before, began = self.moved_bytes, time.monotonic()
        await asyncio.sleep(_MEASURE_S)
        return (self.moved_bytes - before) / _MIB / (time.monotonic() - began)

    async def speed_of_at_least(self, wanted: float) -> float:
        """MiB/s when it has come to that; what begins may cost a moment, and others use this machine too."""
        for _ in range(_MEASURES):
            found = await self.speed()
            if found > wanted:
                break
        return found

    @contextlib.asynccontextmanager
    async def hostile(self, kind: str) -> AsyncIterator[asyncio.subprocess.Process]:
        paths = self.made.paths
        port = paths.endpoint_file.read_text().strip().rsplit(":", 1)[1]
        host_key = Path(f"{paths.host_key_file}.pub").read_text()
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.security.hostile_agent", kind, port,
            str(self._hostile_key), host_key, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert child.stdout is not None
            async with asyncio.timeout(30):
                assert await child.stdout.readline() == b"begun\n"
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await process.stop(child, grace_s=5)
            child._transport.close()  # type: ignore[attr-defined]


@pytest.fixture
async def stage(short_tmp: Path) -> AsyncIterator[Stage]:
    paths, key = prepared(short_tmp)
    hostile_key = short_tmp / "hostile.key"
    table = paths.state / "authorization.json"
    tables = json.loads(table.read_text())
    tables["agents"][fingerprint(ensure_key(hostile_key, "hostile"))] = "hostile"
    tables["targets"] = {name: str(short_tmp / f"{name[4:]}.sock") for name in ("nbd/flood", "nbd/sink")}
    table.write_text(json.dumps(tables))
    flood = await asyncio.start_unix_server(_flood, tables["targets"]["nbd/flood"])
    sink = await asyncio.start_unix_server(_swallow, tables["targets"]["nbd/sink"])
    made = config(paths)
    assert made.limits == Limits()
    async with flood, sink, supervised(made), dial(agent_of(paths, key)) as tunnel:
        async with tunnel.forward("nbd/sink", short_tmp / "l.sock"):
            _, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            (gateway,) = gateways()
            ready = Stage(made, hostile_key, gateway)

            async def work() -> None:
                while True:
                    writer.write(_BLOCK)
                    await writer.drain()
                    ready.moved_bytes += len(_BLOCK)

            working = asyncio.create_task(work())
            try:
                yield ready
                assert not working.done(), "the honest agent's channel broke"
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                writer.transport.abort()


async def test_hostile_and_frozen_agents_neither_fill_the_gateway_nor_stop_another_agent(stage: Stage):
    for kind in (*KINDS, "frozen"):
        alone = await stage.speed()
        settled = resident_bytes(stage.gateway)
        async with stage.hostile("never_reads" if kind == "frozen" else kind) as child:
            if kind == "frozen":
                child.send_signal(signal.SIGSTOP)
            beside = await stage.speed_of_at_least(alone * _SLOWEST_SHARE)
            most = resident_bytes(stage.gateway)
            for _ in range(5):
                await asyncio.sleep(0.1)
                most = max(most, resident_bytes(stage.gateway))
            if kind == "sends_a_bomb":
                assert child.stdout is not None
                async with asyncio.timeout(30):
                    assert await child.stdout.readline() == b"thrown out\n"
        grown = (most - settled) / _MIB
        log.info("%s: other agent %.0f -> %.0f MiB/s, gateway +%.1f MiB", kind, alone, beside, grown)
        assert most - settled <= _GROWS_BYTES, kind
        assert beside > alone * _SLOWEST_SHARE, kind
