# SPDX-License-Identifier: Apache-2.0
"""The whole product in three rooms, small enough to be run down: hub and credentials, an agent, a vCenter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.hub import Hub
from tests.chaos.init import MARK, Unit, marked, processes
from tests.chaos.rooms import Link, NoRooms, Room, link, room, run
from tests.e2e.kit import PASSWORD, USER

from sendense.credentials.v1 import credential_service_pb2
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import site_service_pb2
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_common import process, rpc
from sendense_common.keys import AgentPublicKeys
from sendense_common.paths import Installation, private_dir
from sendense_lab.client import LabClient

SITE = "local"
CHECKPOINT_MIB = 16
REPOSITORY_MIB = 2048
_STATE_MIB = 64
_HUB_PORT, _VCENTER_PORT = 8022, 8443
_FAKETIME = "*/faketime/libfaketimeMT.so.1"
_TUNNEL_MBIT, _VCENTER_MBIT = 320, 2000
_IDLE_SESSION_S = 60
_READY_WITHIN_S = 90.0
_STOP_GRACE_S = {"vcenter": 5.0, "credentials": 15.0, "hub": 60.0, "agent": 60.0}
_LAB_WITHIN_S = 90.0


@dataclass
class Stage:
    """All that runs."""

    directory: Path
    mark: str
    rooms: dict[str, Room]
    tunnel: Link
    """Between hub and agent."""
    road: Link
    """Between agent and vCenter."""
    relay: asyncio.subprocess.Process
    checkpoints: tuple[str, ...]
    """Options of the agent's configuration."""
    units: dict[str, Unit] = field(default_factory=dict)
    _relaying: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def installation(self) -> Installation:
        return Installation(self.directory / "s")

    @property
    def hub(self) -> Hub:
        return Hub(self.installation.hub.api_socket)

    @property
    def repository(self) -> Path:
        """As it can be looked at from here."""
        return self.rooms["hub"].path(self.directory / "repository")

    @property
    def state(self) -> Path:
        """The hub's, as it can be looked at from here."""
        return self.rooms["hub"].path(self.installation.hub.state)

    def clock(self, room: str) -> Path:
        """How far the clock of a room is off, for libfaketime: `+3600`."""
        return self.directory / f"clock-{room}"

    @property
    def exports(self) -> Path:
        return self.directory / "exports"

    @property
    def temporary(self) -> Path:
        """What the services take for /tmp."""
        return self.directory / "tmp"

    @property
    def environment(self) -> dict[str, str]:
        return {
            MARK: self.mark,
            "SENDENSE_STATE": str(self.installation.state),
            "TMPDIR": str(self.temporary),
            "COLUMNS": "120",
        }

    def processes(self, job_id: str = "") -> dict[str, list[int]]:
        return processes(self.mark, job_id)

    async def order(self, name: str, do: str, **more: Any) -> None:
        """Tells the relay on a link ("hub" or "vcenter") something; see relay.py."""
        async with asyncio.timeout(_LAB_WITHIN_S), self._relaying:
            assert self.relay.stdin is not None
            assert self.relay.stdout is not None
            self.relay.stdin.write(json.dumps({"link": name, "do": do, **more}).encode() + b"\n")
            await self.relay.stdin.drain()
            assert await self.relay.stdout.readline() == b"done\n"

    async def lab(self, name: str, /, **arguments: Any) -> Any:
        """A command to the simulated vCenter, which may be frozen for a while."""
        async with asyncio.timeout(_LAB_WITHIN_S):
            return await LabClient(self.directory / "vcenter").command(name, **arguments)

    def frozen(self, vm: str) -> Path:
        """Where a copy of each disk is kept at each snapshot."""
        return self.directory / "vcenter" / "frozen" / vm

    async def command(self, *words: str, secret: str = "") -> str:
        """The `sendense` command."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sendense_cli.main", *words,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.environment},
        )  # fmt: skip
        output, _ = await child.communicate(secret.encode())
        if child.returncode:
            raise RuntimeError(f"sendense {' '.join(words)}: {output.decode()}")
        return output.decode()

    async def start(self) -> None:
        """Everything, ready; the vCenter is known."""
        here, logs = self.installation, private_dir(self.installation.logs)
        python = [sys.executable, "-m"]
        private_dir(self.temporary)
        private_dir(self.exports)
        private_dir(here.run)

        def unit(name: str, where: str, *command: str) -> Unit:
            entered = self.rooms[where].enter(*command)
            environment = {**self.environment, **self._own_clock(where)}
            self.units[name] = Unit(name, entered, logs / f"{name}.log", environment)
            return self.units[name]

        lab = private_dir(self.directory / "vcenter")
        (lab / "password").write_text(PASSWORD)
        await unit(
            "vcenter", "vcenter", *process.dying_with_parent([*python, "sendense_lab.main", "vcenter"]),
            f"--state={lab}", f"--listen=0.0.0.0:{_VCENTER_PORT}", f"--username={USER}",
            f"--password-file={lab / 'password'}",
        ).start()  # fmt: skip
        paths = here.credentials
        await run(*python, "sendense_credentials.main", "init-key", f"--state={paths.state}")
        await unit(
            "credentials", "hub", *python, "sendense_credentials.main",
            f"--state={paths.state}", f"--run={paths.run}",
            f"--telemetry-socket={here.hub.telemetry_socket}",
        ).start()  # fmt: skip
        await rpc.wait_healthy(paths.operator_socket, timeout_s=_READY_WITHIN_S, what="credentials")
        await unit(
            "hub", "hub", *python, "sendense_hub.main",
            f"--state={here.hub.state}", f"--run={here.hub.run}", f"--listen=0.0.0.0:{_HUB_PORT}",
            f"--credentials-run={paths.run}", f"--repository=default={self.directory / 'repository'}",
        ).start()  # fmt: skip
        await rpc.wait_healthy(here.hub.api_socket, timeout_s=_READY_WITHIN_S, what="the hub")
        await self._enrol()
        agent = here.agent(SITE)
        await unit(
            "agent", "agent", *python, "sendense_agent.main", "run",
            f"--state={agent.state}", f"--run={agent.run}",
        ).start()  # fmt: skip
        await self.until_connected()
        await self.until_lab()
        await self.lab("set", session_idle_seconds=_IDLE_SESSION_S)
        await self.command(
            "vcenter", "add", "vc", "--address", f"127.0.0.1:{_VCENTER_PORT}", "--username", USER,
            "--password-stdin", "--ca-file", str(lab / "ca.pem"), secret=PASSWORD + "\n",
        )  # fmt: skip

    def _own_clock(self, room: str) -> dict[str, str]:
        """Environment of services whose time of day a file decides; what measures durations is left alone."""
        if room == "vcenter":
            return {}
        if not (found := sorted(Path("/usr/lib").glob(_FAKETIME))):
            raise NoRooms("clocks cannot be stepped: libfaketime is needed (package libfaketime)")
        self.clock(room).write_text("+0\n")
        return {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock(room)),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DISABLE_SHM": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    async def _enrol(self) -> None:
        """The agent's configuration and keys, and who must know them."""
        agent, hub = self.installation.agent(SITE), self.installation.hub
        private_dir(agent.state)
        said = await run(
            sys.executable, "-m", "sendense_agent.main", "configure", f"--state={agent.state}",
            f"--run={agent.run}", f"--site={SITE}", f"--hub=127.0.0.1:{_HUB_PORT}",
            f"--hub-key={(self.state / hub.host_key_file.with_suffix('.pub').name).read_text().strip()}",
            "--snapshots-per-datastore=16", "--reads-per-host=16",
            *self.checkpoints,
        )  # fmt: skip
        ssh_key, keys_line = said.splitlines()[-2:]
        keys = AgentPublicKeys.from_line(keys_line)
        async with rpc.connect(hub.api_socket) as channel:
            site = site_service_pb2.RegisterSiteRequest(name=SITE, ssh_public_key=ssh_key)
            await SiteServiceStub(channel).RegisterSite(site)
        async with rpc.connect(self.installation.credentials.operator_socket) as channel:
            known = credential_service_pb2.Agent(
                agent_id=SITE, signing_public_key=keys.signing, sealing_public_key=keys.sealing
            )
            await CredentialServiceStub(channel).RegisterAgent(
                credential_service_pb2.RegisterAgentRequest(agent=known)
            )

    async def until_connected(self, within_s: float = _READY_WITHIN_S) -> None:
        """The agent has its tunnel."""
        async with asyncio.timeout(within_s):
            while not await self.hub.connected():  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def until_lab(self) -> None:
        """The vCenter takes commands."""
        async with asyncio.timeout(_READY_WITHIN_S):
            while True:
                with contextlib.suppress(OSError):
                    await self.lab("counters")
                    return
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Everything, in reverse."""
        for name in reversed(self.units):
            await self.units[name].stop(_STOP_GRACE_S[name])


@contextlib.asynccontextmanager
async def stage(
    logs: Path,
    *,
    repository_mib: int = REPOSITORY_MIB,
    tunnel_mbit: int = _TUNNEL_MBIT,
    checkpoints: tuple[str, ...] = (f"--checkpoint-mib={CHECKPOINT_MIB}", "--checkpoint-seconds=5"),
) -> AsyncIterator[Stage]:
    """A running stage; when the block ends, however, nothing of it is left.

    Args:
        logs: where the logs of all services go at the end; emptied before.
        repository_mib: size of its file system; 0: a directory beside everything else.
        tunnel_mbit: speed of the link between hub and agent.
        checkpoints: options of the agent's configuration.

    Raises:
        NoRooms: this machine cannot have one.
    """
    directory = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
    try:
        async with room("hub") as hub, room("agent") as agent, room("vcenter") as vcenter:
            rooms = {each.name: each for each in (hub, agent, vcenter)}
            tunnel = await link(hub, agent, 1, tunnel_mbit)
            road = await link(vcenter, agent, 2, _VCENTER_MBIT)
            if repository_mib:
                await hub.mount(directory / "repository", repository_mib)
            await hub.mount(Installation(directory / "s").hub.state, _STATE_MIB)
            relay = await _relay(agent)
            made = Stage(directory, uuid.uuid4().hex, rooms, tunnel, road, relay, checkpoints)
            try:
                await made.start()
                yield made
            finally:
                await made.stop()
                with contextlib.suppress(FileNotFoundError):
                    shutil.copy(made.state / "catalog.sqlite", made.installation.logs)
                assert relay.stdin is not None
                relay.stdin.close()
                await process.stop(relay, grace_s=5.0)
        if left := await _all_gone(made):
            raise RuntimeError(f"still running after the stop: {left}")
    finally:
        shutil.rmtree(logs, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copytree(directory / "s" / "logs", logs)
        shutil.rmtree(directory, ignore_errors=True)


async def _relay(agent: Room) -> asyncio.subprocess.Process:
    child = await asyncio.create_subprocess_exec(
        *agent.enter(
            sys.executable, str(Path(__file__).with_name("relay.py")),
            f"hub={_HUB_PORT}:10.77.1.1:{_HUB_PORT}", f"vcenter={_VCENTER_PORT}:10.77.2.1:{_VCENTER_PORT}",
        ),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    assert await child.stdout.readline() == b"ready\n"
    return child


async def _all_gone(made: Stage) -> list[str]:
    deadline = asyncio.get_running_loop().time() + 30
    while (left := marked(made.mark)) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    return left
