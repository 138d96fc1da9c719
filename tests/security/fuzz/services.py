# SPDX-License-Identifier: Apache-2.0
"""Hub, credentials and agent in jails, with state to throw away, and what to call them with."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.credentials.kit import store_request
from tests.integration.hub.kit import Api, api_command, world
from tests.integration.hub.scripted_agent import MACHINE, MACHINE_NAME, SITE, VCENTER, backup, plan_of
from tests.integration.hub.test_backups import FIRST
from tests.integration.tunnel.test_memory import resident_bytes
from tests.security.fuzz.calls import Outcome, fuzz, methods_of
from tests.security.fuzz.jail import jailed

from sendense.credentials.v1 import credential_service_pb2
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense_common import process, rpc
from sendense_common.keys import AgentKeys
from sendense_common.paths import AgentPaths, CredentialsPaths
from sendense_common.tunnel import ensure_key
from sendense_credentials.vault import create_key_file

_READY_WITHIN_S = 60.0
_WARM = 0.2
_TELL_EVERY_S = 30.0
# A record and its traceback, to the line that names the exception.
_TRACE = re.compile(r"^.*\nTraceback \(most recent call last\):\n(?:[ \t].*\n|\n)*.*\n", re.MULTILINE)


@dataclass
class Target:
    """A process to be attacked."""

    name: str
    pid: int
    log: Path
    sockets: Sequence[Path]
    known: Sequence[str]


@dataclass
class Result:
    """How one process took it."""

    name: str
    outcomes: list[Outcome]
    before_bytes: int
    after_bytes: int
    seconds: float
    complaints: list[str]

    @property
    def inputs(self) -> int:
        return sum(outcome.inputs for outcome in self.outcomes)


def tracebacks(log: Path) -> list[str]:
    """Each with the record that it belongs to."""
    return _TRACE.findall(log.read_text(errors="replace"))


async def attack(target: Target, inputs_per_method: int, seed: int, say: Callable[[str], object]) -> Result:
    """All methods of all its sockets. Memory counts from when each was called a while."""
    began = time.monotonic()
    methods = [(socket, method) for socket in target.sockets for method in await methods_of(socket)]
    warm = max(1, int(inputs_per_method * _WARM))
    outcomes: list[Outcome] = []
    told = began

    async def call_all(inputs: int, with_seed: int) -> None:
        nonlocal told
        for socket, each in methods:
            outcomes.append(await fuzz(socket, each, inputs, with_seed, target.known))
            if time.monotonic() - told > _TELL_EVERY_S:
                told = time.monotonic()
                say(f"{target.name}: {sum(outcome.inputs for outcome in outcomes)} inputs so far")

    await call_all(warm, seed + 1)
    before = resident_bytes(target.pid)
    await call_all(inputs_per_method - warm, seed)
    complaints = [defect for outcome in outcomes for defect in outcome.defects]
    complaints += tracebacks(target.log)
    return Result(
        target.name, outcomes, before, resident_bytes(target.pid), time.monotonic() - began, complaints
    )


@contextlib.asynccontextmanager
async def _running(
    name: str, command: Sequence[str], directory: Path, sockets: Sequence[Path]
) -> AsyncIterator[Target]:
    log = directory / f"{name}.log"
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(*jailed(command, directory), stdout=file, stderr=file)
    try:
        for socket in sockets:
            await rpc.wait_healthy(socket, timeout_s=_READY_WITHIN_S, what=f"{name}: {log.read_text()}")
        yield Target(name, child.pid, log, sockets, [])
        assert child.returncode is None, f"{name} died: {log.read_text()[-3000:]}"
    finally:
        await process.stop(child, grace_s=30)


@contextlib.asynccontextmanager
async def hub(directory: Path) -> AsyncIterator[Target]:
    """The API with one point, its own sockets and those of gateways."""
    async with world(directory) as made:
        ensure_key(made.paths.host_key_file, "sendense-hub")  # the supervisor's work
        sockets = [made.paths.api_socket, made.paths.authorization_socket, made.paths.telemetry_socket]
        async with _running("hub", api_command(made), directory, sockets) as target:
            async with rpc.connect(made.paths.api_socket) as channel:
                api = Api(made, None, channel)  # type: ignore[arg-type]
                await api.register()
                made.agent.script = backup(FIRST, plan_of())
                job = await api.ended((await api.start_backup()).job_id)
            target.known = [
                job.job_id, job.point_id, MACHINE, MACHINE_NAME, SITE, VCENTER, "default", "SHA256:x",
                "credentials", "telemetry", "nbd/x", str(directory / "out" / "disk.raw"),
            ]  # fmt: skip
            yield target


@contextlib.asynccontextmanager
async def credentials(directory: Path) -> AsyncIterator[Target]:
    """With one agent and one credential."""
    paths = CredentialsPaths(directory / "state", directory / "run")
    create_key_file(paths.key_file)
    command = [
        *(sys.executable, "-m", "sendense_credentials.main"),
        *("--state", str(paths.state), "--run", str(paths.run)),
    ]
    sockets = [paths.operator_socket, paths.hub_socket, paths.agents_socket]
    async with _running("credentials", command, directory, sockets) as target:
        public = AgentKeys.generate().public
        agent = credential_service_pb2.Agent(
            agent_id="site-a", signing_public_key=public.signing, sealing_public_key=public.sealing
        )
        async with rpc.connect(paths.operator_socket) as channel:
            stub = CredentialServiceStub(channel)
            await stub.RegisterAgent(credential_service_pb2.RegisterAgentRequest(agent=agent))
            stored = await stub.StoreCredential(store_request("vcenter"))
        target.known = ["site-a", stored.credential.credential_id, "vcenter", "job 1"]
        yield target


@contextlib.asynccontextmanager
async def agent(directory: Path) -> AsyncIterator[Target]:
    """Its control process."""
    paths = AgentPaths(directory / "s", directory / "r")
    command = [sys.executable, "-m", "tests.security.fuzz.agent", str(directory)]
    async with _running("agent", command, directory, [paths.grpc_socket]) as target:
        target.known = ["8f2c1a34-3f5e-4a55-9d5e-0a7a3f0a2b11", "hub-1", "vm-1", "start", "snapshot-1"]
        yield target


SERVICES = {each.__name__: each for each in (hub, credentials, agent)}
