# SPDX-License-Identifier: Apache-2.0
"""A gateway that is sent garbage before login, and anything at all after it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.packet import Boolean, Byte, NameList, String, UInt32
from tests.integration.tunnel.kit import FakeAuthorization, Hub, accepting, echo, raw_ssh, target
from tests.integration.tunnel.test_memory import resident_bytes
from tests.security.fuzz.calls import Outcome
from tests.security.fuzz.services import Result, tracebacks

from sendense_common import process
from sendense_common.paths import HubPaths, private_dir
from sendense_common.tunnel import TunnelConfig, dial, ensure_key
from sendense_hub.gateway.handover import SupervisorEnd, pair

_AT_ONCE = 16
_PING_EVERY = 10
_ANSWERS_WITHIN_S = 40.0
_WARM = 0.2
_KEX_TYPES = range(20, 50)
_KINDS = (
    b"session", b"direct-tcpip", b"direct-streamlocal@openssh.com", b"tun@openssh.com", b"x11", b"", b"\xff",
    b"forwarded-streamlocal@openssh.com", b"auth-agent@openssh.com", b"__init__", b"x" * 3000, b"a-b@c",
)  # fmt: skip
_NAMES = (
    b"nbd/x",
    b"credentials",
    b"telemetry",
    b"",
    b"nbd/",
    b"/agent",
    b"\xff",
    b"../x",
    b"n" * 100_000,
    b"a\0b",
)
_REQUESTS = (
    b"tcpip-forward", b"cancel-tcpip-forward", b"streamlocal-forward@openssh.com", b"keepalive@openssh.com",
    b"cancel-streamlocal-forward@openssh.com", b"hostkeys-prove-00@openssh.com", b"", b"\xff",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 7, 100, 2**31 - 1, 2**31, 2**32 - 1)


@contextlib.asynccontextmanager
async def _gateway(directory: Path) -> AsyncIterator[tuple[Hub, int, Path]]:
    paths = HubPaths(private_dir(directory / "state"), private_dir(directory / "run"))
    hub = Hub(paths, FakeAuthorization(), ensure_key(paths.host_key_file, "hub"))
    ours, theirs = pair()
    hub.end = SupervisorEnd(ours)
    log = directory / "gateway.log"

    def took(port: int) -> None:
        hub.port = port

    async with hub.api, accepting(took, hub.end):
        await hub.start_api()
        with theirs, log.open("wb") as file:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sendense_hub.gateway", "--state", str(paths.state)),
                *("--run", str(paths.run), "--control-fd", str(theirs.fileno()), "--login-seconds=10"),
                pass_fds=[theirs.fileno()],
                stderr=file,
            )
        try:
            yield hub, child.pid, log
            assert child.returncode is None, f"the gateway died: {log.read_text()[-3000:]}"
        finally:
            await process.stop(child, grace_s=10)
            hub.end.close()


async def attack(directory: Path, inputs: int, seed: int) -> Result:
    """So many inputs, one in three of them before login."""
    began = time.monotonic()
    outcomes = []
    async with _gateway(directory) as (hub, pid, log), target(hub, "nbd/x", echo):
        agents = [hub.enrol(f"agent-{number}") for number in range(_AT_ONCE)]
        warm = int(inputs * _WARM)
        before = 0
        for share, started_with in ((warm, seed + 1), (inputs - warm, seed)):
            outcomes.append(await _before_login(hub, share // 3, started_with))
            outcomes.append(await _after_login(hub, agents, share - share // 3, started_with))
            before = before or resident_bytes(pid)
        async with dial(hub.enrol("agent-honest")) as tunnel, tunnel.forward("nbd/x", directory / "l.sock"):
            reader, writer = await asyncio.open_unix_connection(str(directory / "l.sock"))
            writer.write(b"still there?")
            assert await reader.readexactly(12) == b"still there?"
            writer.close()
        after = resident_bytes(pid)
    complaints = [defect for outcome in outcomes for defect in outcome.defects] + tracebacks(log)
    return Result("gateway", outcomes, before, after, time.monotonic() - began, complaints)


# --- before login ---


def _greeting(rng: random.Random) -> bytes:
    version = rng.choice(
        (b"SSH-2.0-x\r\n", b"SSH-1.99-x\n", b"SSH-2.0-\xff\n", b"GET / HTTP/1.1\r\n\r\n", b"\0", b"")
    )
    packets = []
    for _ in range(rng.choice((0, 1, 1, 3))):
        payload = rng.choice((_kexinit(rng), rng.randbytes(rng.choice((0, 1, 40, 2000)))))
        made = bytearray(_packet(rng, payload))
        for _ in range(rng.choice((0, 0, 1, 5))):
            made[rng.randrange(len(made))] = rng.randrange(256)
        packets.append(bytes(made))
    return version + b"".join(packets) + rng.choice((b"", rng.randbytes(9000)))


def _packet(rng: random.Random, payload: bytes) -> bytes:
    padding = 8 - (len(payload) + 5) % 8 + rng.choice((0, 8))
    length = rng.choice((len(payload) + padding + 1,) * 8 + _NUMBERS)
    return UInt32(length) + Byte(padding % 256) + payload + bytes(padding)


def _kexinit(rng: random.Random) -> bytes:
    lists: list[list[bytes]] = [
        [b"curve25519-sha256", b"ext-info-c", b"kex-strict-c-v00@openssh.com"], [b"ssh-ed25519"],
        *([[b"aes128-gcm@openssh.com"]] * 2), *([[b"hmac-sha2-256"]] * 2),
        *([[b"none", b"zstd@sendense"]] * 2), [], [],
    ]  # fmt: skip
    if rng.random() < 0.5:
        lists[rng.randrange(10)] = rng.choice(([], [b"x" * 5000], [b"\xff"], [b"none"] * 2000))
    return Byte(20) + rng.randbytes(16) + b"".join(map(NameList, lists)) + Boolean(False) + UInt32(0)


async def _before_login(hub: Hub, inputs: int, seed: int) -> Outcome:
    outcome = Outcome("before login")
    numbers = iter(range(inputs))

    async def work() -> None:
        for number in numbers:
            sent = _greeting(random.Random(f"{seed} before {number}"))
            outcome.inputs += 1
            try:
                async with asyncio.timeout(_ANSWERS_WITHIN_S):
                    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
                    with contextlib.suppress(ConnectionError):
                        writer.write(sent)
                        writer.write_eof()
                        while await reader.read(65536):
                            pass
                    writer.close()
            except TimeoutError:
                outcome.defects.append(f"before login, input {number}: it hangs: {sent[:300].hex()}")

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return outcome


# --- after login ---


def _anything(rng: random.Random) -> tuple[int, bytes]:
    """(type, payload) of a message that an agent may send."""
    number = UInt32(rng.choice(_NUMBERS))
    choice = rng.random()
    if choice < 0.4:
        tail = b"".join(String(rng.choice(_NAMES)) for _ in range(rng.randrange(4))) + number * rng.randrange(
            3
        )
        return 90, String(rng.choice(_KINDS)) + number + b"".join(
            UInt32(rng.choice(_NUMBERS)) for _ in "wp"
        ) + tail
    if choice < 0.65:
        tail = String(rng.choice(_NAMES)) + number
        return 80, String(rng.choice(_REQUESTS)) + Boolean(rng.random() < 0.8) + tail[: rng.randrange(40)]
    if choice < 0.85:
        payload = number + rng.choice((b"", number, String(rng.randbytes(rng.choice((0, 5, 70_000))))))
        return rng.randrange(91, 101), payload
    return rng.randrange(1, 256), rng.randbytes(rng.choice((0, 1, 8, 100, 5000)))


async def _after_login(hub: Hub, agents: list[TunnelConfig], inputs: int, seed: int) -> Outcome:
    outcome = Outcome("after login")
    numbers = iter(range(inputs))

    async def work(agent: TunnelConfig) -> None:
        for number in numbers:
            try:
                async with asyncio.timeout(_ANSWERS_WITHIN_S):
                    conn: Any = await raw_ssh(hub, agent)
            except (OSError, asyncssh.Error) as error:
                outcome.defects.append(f"after login, input {number}: no login: {error!r}")
                continue
            sent: list[str] = []
            changes_keys = False
            try:
                for number_here in itertools.chain([number], numbers):
                    kind, payload = _anything(random.Random(f"{seed} after {number_here}"))
                    outcome.inputs += 1
                    sent.append(f"{number_here}: {kind} {payload[:100].hex()}")
                    changes_keys = changes_keys or kind in _KEX_TYPES
                    conn.send_packet(kind, payload)
                    if len(sent) % _PING_EVERY == 0 or changes_keys:
                        async with asyncio.timeout(5 if changes_keys else _ANSWERS_WITHIN_S):
                            await conn._make_global_request(b"keepalive@openssh.com")
                    if conn.is_closed() or conn._transport is None:
                        break
            except TimeoutError:
                if not changes_keys:  # which it may wait for, as long as it likes
                    outcome.defects.append(f"after login, it hangs: {sent[-_PING_EVERY:]}")
            except (asyncssh.Error, OSError, AssertionError, AttributeError):
                pass  # thrown out
            finally:
                conn.abort()

    await asyncio.gather(*(work(agent) for agent in agents))
    return outcome
