# SPDX-License-Identifier: Apache-2.0
"""What an agent with a good key asks for and may not have: fifty times each, while another agent works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncssh
import pytest
from asyncssh.channel import SSHUNIXChannel
from tests.integration.tunnel.kit import Hub, echo, raw_ssh, reverse_socket, running_hub, target

from sendense_common.tunnel import dial, fingerprint

pytestmark = pytest.mark.integration

_TIMES = 50
_BLOCK = bytes(range(256)) * 256
Attempt = Callable[[asyncssh.SSHClientConnection], Awaitable[object]]


def _tcp(host: str, port: int) -> Attempt:
    return lambda conn: conn.open_connection(host, port)


def _name(name: str) -> Attempt:
    return lambda conn: conn.open_unix_connection(name)


def _listen(name: str) -> Attempt:
    return lambda conn: conn.forward_remote_path(name, "/nowhere")


def _kind(kind: bytes) -> Attempt:
    """A channel of a kind that only servers open, or nobody."""

    async def attempt(conn: asyncssh.SSHClientConnection) -> None:
        loop = asyncio.get_running_loop()
        channel: SSHUNIXChannel[bytes] = SSHUNIXChannel(conn, loop, None, "strict", 1 << 16, 1 << 15)
        await channel._open(kind)

    return attempt


async def _session_with_agent(conn: asyncssh.SSHClientConnection) -> None:
    await conn.create_process(x11_forwarding="ignore_failure", term_type="xterm")


ATTEMPTS: dict[str, tuple[Attempt, str]] = {
    # what is tried: how, and what the log calls it
    "a shell": (lambda conn: conn.create_process(), "session"),
    "a command": (lambda conn: conn.run("id"), "session"),
    "a subsystem": (lambda conn: conn.create_process(subsystem="netconf"), "session"),
    "SFTP": (lambda conn: conn.start_sftp_client(), "session"),
    "a terminal with X11": (_session_with_agent, "session"),
    "the hub's loopback": (_tcp("127.0.0.1", 22), "direct-tcpip '127.0.0.1:22'"),
    "the hub's loopback, IPv6": (_tcp("::1", 22), "direct-tcpip '::1:22'"),
    "the cloud's metadata": (_tcp("169.254.169.254", 80), "direct-tcpip '169.254.169.254:80'"),
    "a host of the hub's network": (_tcp("hub.internal", 5432), "direct-tcpip 'hub.internal:5432'"),
    "a system socket": (_name("/run/dbus/system_bus_socket"), "open '/run/dbus"),
    "a path that climbs": (_name("nbd/../../api.sock"), "open 'nbd/.."),
    "the operators' socket": (_name("api"), "open 'api'"),
    "a name of nothing": (_name(""), "open ''"),
    "a name with a zero byte": (_name("credentials\0"), "open 'credentials"),
    "a name that is a novel": (_name("nbd/" + "x" * 100_000), "open 'nbd/xxx"),
    "another agent's export": (_name("nbd/of-site-b"), "open 'nbd/of-site-b'"),
    "another agent's reverse socket": (_name("a/site-b.sock"), "open 'a/site-b.sock'"),
    "a listen on a port": (
        lambda conn: conn.forward_remote_port("", 0, "127.0.0.1", 1),
        "tcpip-forward ':0'",
    ),
    "a listen on another agent's path": (_listen("/agents/site-b"), "listen '/agents/site-b'"),
    "a listen on a file": (_listen("/tmp/mine.sock"), "listen '/tmp/mine.sock'"),
    "a listen that climbs": (_listen("/agent/../site-b"), "listen '/agent/../site-b'"),
    "a network device": (lambda conn: conn.create_tun(asyncssh.SSHTunTapSession), "tun"),
    "a bridge device": (lambda conn: conn.create_tap(asyncssh.SSHTunTapSession), "tap"),
    "X11": (_kind(b"x11"), "open 'a channel'"),
    "agent forwarding": (_kind(b"auth-agent@openssh.com"), "open 'a channel'"),
    "a channel that servers open": (_kind(b"forwarded-tcpip"), "open 'a channel'"),
}


@pytest.fixture
async def hub(short_tmp) -> AsyncIterator[Hub]:
    async with running_hub(short_tmp) as running:
        running.authorization.owners["nbd/of-site-b"] = "site-b"
        yield running


async def _refused(attempt: Attempt, conn: asyncssh.SSHClientConnection) -> None:
    with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError, asyncssh.SFTPError)):
        await attempt(conn)


@contextlib.asynccontextmanager
async def _at_work(hub: Hub, directory) -> AsyncIterator[Callable[[], int]]:
    """Another agent moves bytes there and back; gives how often it has."""
    done = 0

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal done
        while True:
            writer.write(_BLOCK)
            assert await reader.readexactly(len(_BLOCK)) == _BLOCK
            done += 1

    async with target(hub, "nbd/of-site-b", echo), dial(hub.enrol("site-b")) as tunnel:
        await tunnel.publish(directory / "b.sock")
        async with tunnel.forward("nbd/of-site-b", directory / "l.sock"):
            reader, writer = await asyncio.open_unix_connection(str(directory / "l.sock"))
            working = asyncio.create_task(work(reader, writer))
            try:
                yield lambda: done
                assert not working.done(), "the other agent's channel broke"
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                writer.close()


async def test_ff04_fifty_attempts_of_each_kind_are_refused_and_logged_while_another_agent_works(
    hub: Hub, short_tmp, caplog
):
    config = hub.enrol("site-a")
    key = fingerprint((config.private_key_file.with_suffix(".key.pub")).read_text())
    caplog.set_level(logging.WARNING, "sendense_hub.gateway")
    async with _at_work(hub, short_tmp) as done:
        before = set(hub.paths.agents_dir.iterdir())
        for what, (attempt, logged) in ATTEMPTS.items():
            caplog.clear()
            moved = done()
            async with asyncio.timeout(60), await raw_ssh(hub, config) as conn:
                await asyncio.gather(*(_refused(attempt, conn) for _ in range(_TIMES)))
                assert not conn.is_closed(), what
            lines = [r.getMessage() for r in caplog.records if f"refused {logged}" in r.getMessage()]
            assert len(lines) == _TIMES, what
            assert all(f"agent=site-a key={key}" in line and len(line) < 500 for line in lines), what
            assert done() > moved, f"the other agent stood still during {what}"
        assert set(hub.paths.agents_dir.iterdir()) == before, "somebody published something"
        assert reverse_socket(hub, "site-b").exists()


async def test_a_connection_that_asks_for_too_much_that_is_refused_ends(short_tmp):
    from sendense_hub.gateway.limits import Limits

    async with running_hub(short_tmp, Limits(refusals_per_connection=20)) as hub:
        async with await raw_ssh(hub, hub.enrol()) as conn:
            asked = [asyncio.create_task(_refused(_name("no such name"), conn)) for _ in range(100)]
            async with asyncio.timeout(20):
                await conn.wait_closed()
            await asyncio.gather(*asked, return_exceptions=True)
