# SPDX-License-Identifier: Apache-2.0
"""What one connection may make a gateway keep and do, and a supervisor that counts right under a flood."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.tunnel.kit import Hub, raw_ssh, target, until

from sendense_common.tunnel import PipeSet, dial
from sendense_hub.gateway import reading
from sendense_hub.gateway.handover import GatewayEnd, SupervisorEnd, pair
from sendense_hub.gateway.reading import Allowance, BoundedReading

pytestmark = pytest.mark.integration

_KIB, _MIB = 1024, 1024 * 1024


class Transport:
    """A socket whose peer reads nothing: what is written to it stays."""

    def __init__(self) -> None:
        self.unsent_bytes = 0
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def _connection(transport: Transport, reply_bytes: int) -> Any:
    """Answers each byte with so many."""

    def received(data: bytes, datatype: object = None) -> None:
        transport.unsent_bytes += len(data) * reply_bytes

    return SimpleNamespace(
        _transport=transport,
        _inpbuf=b"",
        _pktlen=_MIB,
        _recv_seq=0,
        data_received=received,
        log_received_packet=print,
    )


async def test_a_peer_that_reads_no_replies_is_not_read_until_it_does():
    transport = Transport()
    conn = _connection(transport, reply_bytes=1000)
    BoundedReading(conn, PipeSet())
    conn.data_received(bytes(_KIB))
    assert transport.reading
    while transport.reading:
        conn.data_received(bytes(_KIB))
        assert transport.unsent_bytes < 16 * _MIB
    conn.data_received(bytes(_KIB))  # an event loop may still bring what it has read
    before = transport.unsent_bytes
    await asyncio.sleep(0.1)
    assert (transport.reading, transport.unsent_bytes) == (False, before)
    transport.unsent_bytes = 0
    await until(lambda: transport.reading, "it is read again")
    assert transport.unsent_bytes == _KIB * 1000, "and what came meanwhile is not lost"


async def test_of_small_packets_an_agent_has_a_number_and_then_must_wait(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(reading, "time", SimpleNamespace(monotonic=lambda: now))
    allowance = Allowance()
    allowance.spend(2000)
    assert not allowance.used_up()
    allowance.spend(500)
    assert allowance.used_up()
    now = 0.9
    assert allowance.used_up()
    now = 1.1
    assert not allowance.used_up()


@pytest.mark.parametrize(
    "block", [bytes(256 * _KIB), random.Random(1).randbytes(256 * _KIB)], ids=["zeroes", "noise"]
)
async def test_data_is_no_flood_however_small_it_gets_on_the_wire(
    hub: Hub, short_tmp: Path, block: bytes, monkeypatch: pytest.MonkeyPatch
):
    swallowed = asyncio.Event()
    allowances: list[Allowance] = []

    def made() -> Allowance:
        allowances.append(Allowance())
        return allowances[-1]

    # That of the agent; the one from before its login is made elsewhere.
    monkeypatch.setattr("sendense_hub.gateway.connection.Allowance", made)

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(_MIB):
            pass
        swallowed.set()

    async with target(hub, "nbd/x", swallow), dial(hub.enrol()) as tunnel:
        async with tunnel.forward("nbd/x", short_tmp / "l.sock"):
            _, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            for _ in range(1024):
                writer.write(block)
                await writer.drain()
            writer.write_eof()
            await asyncio.wait_for(swallowed.wait(), 60)
            writer.close()
        (allowance,) = allowances
        assert allowance._left > 1000


async def test_many_small_requests_are_answered_each_and_in_time(hub: Hub):
    async with await raw_ssh(hub, hub.enrol()) as conn:
        connection: Any = conn
        asked = [connection._make_global_request(b"keepalive@openssh.com") for _ in range(3000)]
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*asked)
    assert len(answers) == 3000


async def test_a_supervisor_that_is_busy_hears_of_every_connection_that_ended():
    ours, theirs = pair()
    supervisor, gateway = SupervisorEnd(ours), GatewayEnd(theirs.detach())
    supervisor.connections = 5000
    for _ in range(5000):  # more than fit into the socket
        gateway.ended()
    watching = asyncio.create_task(supervisor.watch(lambda: None))
    await until(lambda: supervisor.connections == 0, "all are counted")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    supervisor.close()
    gateway.close()
