# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.tunnel.kit import until

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths, private_dir
from sendense_common.tunnel import Tunnel, TunnelConfig, ensure_key, fingerprint, keep_connected
from sendense_hub.gateway.limits import Limits
from sendense_hub.supervisor import SupervisorConfig, child, supervise

pytestmark = pytest.mark.integration


def prepared(directory: Path) -> tuple[HubPaths, Path]:
    """A hub's directories with one enrolled agent; returns its key file too."""
    paths = HubPaths(private_dir(directory / "state"), private_dir(directory / "run"))
    key = directory / "agent.key"
    tables = {"agents": {fingerprint(ensure_key(key, "site-a")): "site-a"}, "targets": {}}
    (paths.state / "authorization.json").write_text(json.dumps(tables))
    return paths, key


def config(paths: HubPaths, port: int = 0, gateways: int = 1) -> SupervisorConfig:
    return SupervisorConfig(
        paths=paths,
        api_command=[
            sys.executable,
            "-m",
            "tests.integration.tunnel.fake_api",
            str(paths.state),
            str(paths.run),
        ],
        listen_host="127.0.0.1",
        listen_port=port,
        gateway_count=gateways,
    )


@contextlib.asynccontextmanager
async def supervised(made: SupervisorConfig) -> AsyncIterator[asyncio.Task[None]]:
    stopping = asyncio.Event()
    task = asyncio.create_task(supervise(made, stopping))
    try:
        await until(lambda: made.paths.endpoint_file.exists() or task.done(), "the hub is ready", 30)
        if task.done():
            await task
        yield task
    finally:
        stopping.set()
        await asyncio.wait([task])


def agent_of(paths: HubPaths, key: Path) -> TunnelConfig:
    host, port = paths.endpoint_file.read_text().strip().rsplit(":", 1)
    return TunnelConfig(host, int(port), "site-a", key, Path(f"{paths.host_key_file}.pub").read_text())


def children(of: int) -> dict[int, str]:
    """Living children and their command lines."""
    found = {}
    for task in Path(f"/proc/{of}/task").iterdir():
        for pid in (task / "children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if line:
                    found[int(pid)] = line
    return found


def gateways(of: int | None = None) -> list[int]:
    return [pid for pid, line in children(of or os.getpid()).items() if "sendense_hub.gateway" in line]


async def test_gateway_and_api_are_started_again_and_the_agent_reconnects(short_tmp: Path):
    paths, key = prepared(short_tmp)
    ups: list[Tunnel] = []
    stopping = asyncio.Event()

    @contextlib.asynccontextmanager
    async def up(tunnel: Tunnel) -> AsyncIterator[None]:
        await tunnel.publish(short_tmp / "nobody.sock")
        ups.append(tunnel)
        yield

    async with supervised(config(paths)) as hub:
        agent = asyncio.create_task(keep_connected(agent_of(paths, key), up, stopping))
        await until(lambda: len(ups) == 1, "the agent is connected")
        (before,) = gateways()
        os.kill(before, signal.SIGKILL)
        await until(lambda: len(ups) == 2, "the agent is connected again", 20)
        assert gateways() != [before]
        assert (paths.agents_dir / "site-a.sock").exists()

        api = int((paths.state / "api.pid").read_text())
        assert (paths.state / "died_before").read_text() == ""
        os.kill(api, signal.SIGKILL)
        await until(
            lambda: int((paths.state / "api.pid").read_text() or api) != api, "the API runs again", 20
        )
        assert (paths.state / "died_before").read_text() == "killed by SIGKILL"
        assert not ups[1].closed  # what was open stayed open
        assert not hub.done()
        stopping.set()
        await agent
    assert not paths.endpoint_file.exists()
    assert not any(str(short_tmp) in line for line in children(os.getpid()).values())


async def test_connections_go_to_the_gateway_with_the_fewest(short_tmp: Path):
    paths, key = prepared(short_tmp)
    from sendense_common.tunnel import dial

    def held_by(pid: int) -> int:
        """Established TCP connections of a process."""
        mine = {
            str(fd.readlink())
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if str(fd.readlink()).startswith("socket:")
        }
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[3] == "01" and f"socket:[{row[9]}]" in mine for row in rows)

    async with supervised(config(paths, gateways=2)):
        async with contextlib.AsyncExitStack() as stack:

            async def connect(count: int) -> list[int]:
                for _ in range(count):
                    await stack.enter_async_context(dial(agent_of(paths, key)))
                return [held_by(pid) for pid in gateways()]

            # The second gateway may be ready later than the first: by then the first one leads.
            for _ in range(40):
                counts = await connect(1)
                if len(counts) == 2 and 0 not in counts:
                    break
                await asyncio.sleep(0.1)
            lead = max(counts) - min(counts)
            assert len(set(await connect(lead))) == 1
            assert [each - sum(counts, lead) // 2 for each in await connect(4)] == [2, 2]


async def test_a_second_hub_on_the_same_port_or_state_is_refused(short_tmp: Path):
    paths, _ = prepared(short_tmp)
    async with supervised(config(paths)) as first:
        port = int(paths.endpoint_file.read_text().rsplit(":", 1)[1])
        other, _ = prepared(private_dir(short_tmp / "2"))
        with pytest.raises(SendenseError, match=f"cannot listen on 127.0.0.1 port {port}") as refused:
            await supervise(config(other, port), asyncio.Event())
        assert refused.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
        with pytest.raises(SendenseError, match="another hub uses the state directory"):
            await supervise(config(paths), asyncio.Event())
        assert not first.done()


async def test_the_limits_of_the_gateways_are_written_down_for_doctor(short_tmp: Path):
    paths, _ = prepared(short_tmp)
    limits = Limits(logins=7, logins_per_address=3, login_timeout_s=5)
    async with supervised(dataclasses.replace(config(paths, gateways=2), limits=limits)):
        written = paths.ssh_limits_file.read_text()
    assert written.startswith("14 connections may be logging in, 6 from one address, for 5 s;")


async def test_an_api_that_never_gets_ready_fails_the_start_and_leaves_nothing(short_tmp: Path):
    paths, _ = prepared(short_tmp)
    made = SupervisorConfig(
        paths=paths,
        api_command=["sleep", "1000.5"],
        listen_host="127.0.0.1",
        api_ready_within_s=0.3,
    )
    with pytest.raises(SendenseError, match="the API did not become ready"):
        await supervise(made, asyncio.Event())
    assert not any("1000.5" in line for line in children(os.getpid()).values())
    assert not paths.endpoint_file.exists()


async def test_children_die_with_a_killed_supervisor(short_tmp: Path):
    paths, _ = prepared(short_tmp)
    code = (
        "import asyncio, sys, pathlib\n"
        "from tests.integration.tunnel.test_supervisor import config\n"
        "from sendense_common.paths import HubPaths\n"
        "from sendense_hub.supervisor import supervise\n"
        "paths = HubPaths(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "asyncio.run(supervise(config(paths), asyncio.Event()))\n"
    )
    hub = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(paths.state), str(paths.run))
    try:
        await until(paths.endpoint_file.exists, "the hub is ready", 30)
        family = [hub.pid, *children(hub.pid)]
        assert len(family) == 3
        hub.kill()
        await hub.wait()
        await until(lambda: not any(alive(pid) for pid in family), "all are gone")
    finally:
        await process.stop(hub, grace_s=1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nobody_else_can_bind_the_port_unnoticed(short_tmp: Path):
    from sendense_hub.supervisor import listener

    with listener.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.socket() as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                second.bind(("127.0.0.1", port))


CHILD = """
import os, sys
from pathlib import Path
from sendense_common import service
lives = Path(sys.argv[1])
said = (lives.read_text() if lives.exists() else "") + f"[{service.died_before()}]"
lives.write_text(said)
life = said.count("[")
if life in (2, 4):
    service.say_taken_over()
if life == 2:
    os.kill(os.getpid(), 9)
sys.exit(life)
"""


async def test_a_child_that_ended_before_it_took_over_is_not_said_to_have_left_what_there_is(tmp_path: Path):
    lives, stopping = tmp_path / "lives", asyncio.Event()
    command = [sys.executable, "-c", CHILD, str(lives)]
    running = asyncio.create_task(child.run("child", command, stopping, stop_grace_s=5))
    await until(lambda: lives.exists() and lives.read_text().count("[") >= 5, "it lives the fifth time", 60)
    stopping.set()
    await running
    assert lives.read_text() == "[][][killed by SIGKILL][killed by SIGKILL][exit code 4]"
