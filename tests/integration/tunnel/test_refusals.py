# SPDX-License-Identifier: Apache-2.0
"""What a key may not do, however it asks; and what happens when the hub cannot tell."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from pathlib import Path

import asyncssh
import pytest
from tests.integration.tunnel.kit import Hub, echo, raw_ssh, reverse_socket, target, until

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import authorization_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_common.tunnel import dial, ensure_key, fingerprint

pytestmark = pytest.mark.integration


async def refuse_shell(conn: asyncssh.SSHClientConnection) -> None:
    await conn.run("id")


async def refuse_subsystem(conn: asyncssh.SSHClientConnection) -> None:
    await conn.start_sftp_client()


async def refuse_direct_tcpip(conn: asyncssh.SSHClientConnection) -> None:
    await conn.open_connection("127.0.0.1", 22)


async def refuse_metadata_address(conn: asyncssh.SSHClientConnection) -> None:
    await conn.open_connection("169.254.169.254", 80)


async def refuse_foreign_socket(conn: asyncssh.SSHClientConnection) -> None:
    await conn.open_unix_connection("/run/dbus/system_bus_socket")


async def refuse_climbing_name(conn: asyncssh.SSHClientConnection) -> None:
    await conn.open_unix_connection("nbd/../../api.sock")


async def refuse_tcp_listen(conn: asyncssh.SSHClientConnection) -> None:
    await conn.forward_remote_port("", 0, "127.0.0.1", 1)


async def refuse_chosen_listen_path(conn: asyncssh.SSHClientConnection) -> None:
    await conn.forward_remote_path("/tmp/mine.sock", "/nowhere")


@pytest.mark.parametrize(
    "attempt",
    [
        refuse_shell,
        refuse_subsystem,
        refuse_direct_tcpip,
        refuse_metadata_address,
        refuse_foreign_socket,
        refuse_climbing_name,
        refuse_tcp_listen,
        refuse_chosen_listen_path,
    ],
)
async def test_ff04_only_logical_names_can_be_opened(hub: Hub, caplog, attempt):
    config = hub.enrol()
    with caplog.at_level(logging.WARNING, "sendense_hub.gateway"):
        async with await raw_ssh(hub, config) as conn:
            with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError)):
                await attempt(conn)
            assert not conn.is_closed()
    refusals = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert refusals
    assert all("key=SHA256:" in refusal for refusal in refusals)
    await until(lambda: hub.authorization.refusals, "the API hears of it, for the audit log")
    report = hub.authorization.refusals[0]
    assert (report.agent_id, report.fingerprint[:7]) == (config.agent_id, "SHA256:")
    assert report.request
    assert report.cause


async def test_an_unknown_key_is_refused(hub: Hub, short_tmp: Path):
    known = hub.enrol()
    ensure_key(short_tmp / "stranger", "stranger")
    with pytest.raises(SendenseError, match="does not know the key") as refused:
        async with dial(dataclasses.replace(known, private_key_file=short_tmp / "stranger")):
            pytest.fail("a stranger got in")
    assert refused.value.reason == Reason.REASON_TUNNEL_REFUSED


async def test_a_key_does_not_open_another_agents_name(hub: Hub):
    hub.enrol("site-b")
    with pytest.raises(SendenseError, match="does not know the key"):
        async with dial(dataclasses.replace(hub.enrol("site-a"), agent_id="site-b")):
            pytest.fail("site-a's key got in as site-b")


async def test_another_host_key_is_never_accepted(hub: Hub, short_tmp: Path):
    other = ensure_key(short_tmp / "other", "other")
    with pytest.raises(SendenseError, match="pinned host key") as refused:
        async with dial(dataclasses.replace(hub.enrol(), hub_host_key=other)):
            pytest.fail("a hub with another key was trusted")
    assert fingerprint(other) in refused.value.message


async def test_with_the_api_away_new_channels_are_refused_and_open_ones_flow(hub: Hub, short_tmp: Path):
    async with target(hub, "nbd/x", echo), dial(hub.enrol()) as tunnel:
        async with tunnel.forward("nbd/x", short_tmp / "l.sock") as forward:
            reader, writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            writer.write(b"one")
            assert await reader.readexactly(3) == b"one"
            await hub.stop_api()
            late, late_writer = await asyncio.open_unix_connection(str(short_tmp / "l.sock"))
            assert await late.read() == b""
            late_writer.close()
            assert forward.refusal is not None
            assert forward.refusal.retryable
            writer.write(b"two")
            assert await reader.readexactly(3) == b"two"
            writer.close()


@pytest.mark.parametrize("pushed", [True, False])
async def test_a_revoked_key_is_cut_off(hub: Hub, pushed: bool):
    async with dial(hub.enrol()) as tunnel:
        hub.authorization.agents.clear()
        if pushed:
            await until(lambda: hub.authorization.watchers, "the gateway watches revocations")
            gone = fingerprint(ensure_key(hub.paths.state / "site-a.key", "site-a"))
            hub.authorization.watchers[0].put_nowait(pb.WatchRevocationsResponse(fingerprint=gone))
        async with asyncio.timeout(15):
            lost = await tunnel.wait_closed()
    assert lost is not None
    assert "revoked" in lost.message


async def test_ending_an_export_closes_its_channels_only(hub: Hub, short_tmp: Path):
    async with target(hub, "nbd/a", echo), target(hub, "nbd/b", echo), dial(hub.enrol()) as tunnel:
        async with (
            tunnel.forward("nbd/a", short_tmp / "a.sock"),
            tunnel.forward("nbd/b", short_tmp / "b.sock"),
        ):
            ends = [await asyncio.open_unix_connection(str(short_tmp / f"{n}.sock")) for n in "ab"]
            for reader, writer in ends:
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
            del hub.authorization.targets["nbd/a"]
            async with asyncio.timeout(15):
                assert await ends[0][0].read() == b""
            ends[1][1].write(b"y")
            assert await ends[1][0].readexactly(1) == b"y"
            for _, writer in ends:
                writer.close()


async def test_the_newest_connection_owns_the_reverse_socket(hub: Hub, short_tmp: Path):
    async def serve(word: bytes, path: Path) -> asyncio.Server:
        async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(word)
            writer.close()

        return await asyncio.start_unix_server(say, str(path))

    servers = [await serve(b"old", short_tmp / "old.sock"), await serve(b"new", short_tmp / "new.sock")]
    config = hub.enrol()
    async with dial(config) as old, dial(config) as new:
        await old.publish(short_tmp / "old.sock")
        await new.publish(short_tmp / "new.sock")
        reader, writer = await asyncio.open_unix_connection(str(reverse_socket(hub)))
        assert await reader.read() == b"new"
        writer.close()
        async with asyncio.timeout(15):
            await old.wait_closed()
        assert old.superseded
        assert not new.closed
    await until(lambda: not reverse_socket(hub).exists(), "the reverse socket is gone with its connection")
    for server in servers:
        server.close()
