# SPDX-License-Identifier: Apache-2.0
"""`sendense up`: credentials, hub and one local agent as child processes, each ready before the next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import credential_service_pb2
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import site_service_pb2
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_cli import descendants, earlier_hub, listen_address
from sendense_cli.service_log import ServiceLog
from sendense_common import process, rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentPublicKeys
from sendense_common.paths import Installation, made_runtime_dir, private_dir
from sendense_common.service import PARENT_ENV, only_one

log = logging.getLogger(__name__)

LOCAL_SITE = "local"
_READY_WITHIN_S = 40.0
_LOOK_EVERY_S = 0.1
_ASK_WITHIN_S = 1.0
_FINISH_GRACE_S = 5.0
_STOP_GRACE_S = {"agent": 130.0, "hub": 60.0, "credentials": 10.0}

Say = Callable[[str], None]


@dataclass(frozen=True)
class StackOptions:
    """How it is run."""

    listen: str = ""
    """Where agents dial the hub; empty: as at the last start (see `listen_address`)."""
    repositories: Sequence[str] = ()
    """NAME=PATH; none: `default` in the state directory."""
    hub_options: Sequence[str] = ()
    """More of `sendense-hub`'s own."""


class Stack:
    """Running services."""

    def __init__(self) -> None:
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._logs: dict[str, ServiceLog] = {}

    def add(self, name: str, child: asyncio.subprocess.Process, said: ServiceLog) -> None:
        """One more, which `said` has the words of."""
        self._children[name], self._logs[name] = child, said

    async def until(self, ready: Callable[[], Coroutine[object, object, bool]], name: str, what: str) -> None:
        """Returns when `ready` says so.

        Raises:
            SendenseError: the service `name` ended, said why it cannot do `what`, or took too long.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _READY_WITHIN_S
        while not await ready():
            hopeless = self._logs[name].reason_to_stop()
            if hopeless or self._children[name].returncode is not None or loop.time() > deadline:
                trouble = hopeless or self._logs[name].trouble()
                raise SendenseError(
                    Reason.REASON_SERVICE_UNAVAILABLE,
                    f"{name} did not {what}" + (f": {trouble}" if trouble else ""),
                    remedy=f"Its log is {self._logs[name].file}.",
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    async def wait_any_ended(self) -> str:
        """The name of the first service that ends by itself."""
        waits = {asyncio.create_task(child.wait()): name for name, child in self._children.items()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return waits[done.pop()]
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def pids(self) -> dict[str, int]:
        """By service."""
        return {name: child.pid for name, child in self._children.items()}


@contextlib.asynccontextmanager
async def running(installation: Installation, options: StackOptions, say: Say) -> AsyncIterator[Stack]:
    """Starts everything, stops it in reverse when the block ends.

    Raises:
        SendenseError: something did not start; its log file is named.
    """
    private_dir(installation.state)
    private_dir(installation.logs)
    services = Stack()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(only_one(installation.state / "up.lock", "`sendense up`"))
        stack.enter_context(made_runtime_dir(installation.state))
        listen = await earlier_hub.waited_for(
            lambda: listen_address.choose(
                options.listen, installation.listen_file, listen_address.candidates()
            ),
            earlier_hub.locks(installation),
            say,
        )
        await stack.enter_async_context(descendants.none_left())

        async def start(name: str, module: str, *arguments: str) -> None:
            say(f"starting {name}")
            said = ServiceLog.from_now_on(installation.logs / f"{name}.log")
            command = [sys.executable, "-m", module, *arguments]
            services.add(name, await stack.enter_async_context(_child(name, command, said.file)), said)

        await _start_credentials(installation, start)
        await services.until(_healthy(installation.credentials.operator_socket), "credentials", "start")
        await _start_hub(installation, options, listen, start)
        await services.until(_healthy(installation.hub.api_socket), "hub", "start")
        await services.until(_exists(installation.hub.endpoint_file), "hub", "open its listener")
        endpoint = installation.hub.endpoint_file.read_text().strip()
        await asyncio.to_thread(listen_address.keep, installation.listen_file, listen, endpoint)
        await _start_agent(installation, start)
        await services.until(_agent_connected(installation), "agent", "connect to the hub")
        reaping = asyncio.create_task(descendants.reap_orphans(set(services.pids().values())))
        try:
            yield services
        finally:
            reaping.cancel()
            say("stopping")


async def _start_credentials(installation: Installation, start: Callable[..., object]) -> None:
    paths = installation.credentials
    module = "sendense_credentials.main"
    await _finished([sys.executable, "-m", module, "init-key", f"--state={paths.state}"])
    await start(  # type: ignore[misc]
        "credentials",
        module,
        f"--state={paths.state}",
        f"--run={paths.run}",
        f"--telemetry-socket={installation.hub.telemetry_socket}",
    )


async def _start_hub(
    installation: Installation, options: StackOptions, listen: str, start: Callable[..., object]
) -> None:
    paths = installation.hub
    paths.endpoint_file.unlink(missing_ok=True)
    await start(  # type: ignore[misc]
        "hub",
        "sendense_hub.main",
        f"--state={paths.state}",
        f"--run={paths.run}",
        f"--listen={listen}",
        f"--credentials-run={installation.credentials.run}",
        *(f"--repository={each}" for each in options.repositories),
        *options.hub_options,
    )


async def _start_agent(installation: Installation, start: Callable[..., object]) -> None:
    """Configures the agent, makes its keys known to hub and credentials, runs it."""
    paths = installation.agent(LOCAL_SITE)
    endpoint = installation.hub.endpoint_file.read_text().strip()
    host_key = installation.hub.host_key_file.with_suffix(".pub").read_text().strip()
    where = [f"--state={paths.state}", f"--run={paths.run}"]
    host, _, port = endpoint.rpartition(":")
    dialled = f"127.0.0.1:{port}" if host in {"0.0.0.0", "::"} else endpoint  # noqa: S104
    output = await _finished(
        [
            sys.executable,
            "-m",
            "sendense_agent.main",
            "configure",
            *where,
            f"--site={LOCAL_SITE}",
            f"--hub={dialled}",
            f"--hub-key={host_key}",
        ]
    )
    ssh_key, keys_line = output.decode().strip().splitlines()[-2:]
    keys = AgentPublicKeys.from_line(keys_line)
    try:
        async with rpc.connect(installation.hub.api_socket) as channel:
            await SiteServiceStub(channel).RegisterSite(
                site_service_pb2.RegisterSiteRequest(name=LOCAL_SITE, ssh_public_key=ssh_key)
            )
        async with rpc.connect(installation.credentials.operator_socket) as channel:
            agent = credential_service_pb2.Agent(
                agent_id=LOCAL_SITE, signing_public_key=keys.signing, sealing_public_key=keys.sealing
            )
            await CredentialServiceStub(channel).RegisterAgent(
                credential_service_pb2.RegisterAgentRequest(agent=agent)
            )
    except grpc.aio.AioRpcError as error:
        raise SendenseError.from_rpc(error, doing="making the local agent known") from error
    await start("agent", "sendense_agent.main", "run", *where)  # type: ignore[misc]


def _agent_connected(installation: Installation) -> Callable[[], Coroutine[object, object, bool]]:
    async def look() -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with rpc.connect(installation.hub.api_socket) as channel:
                request = site_service_pb2.ListSitesRequest()
                answer = await SiteServiceStub(channel).ListSites(request, timeout=5)
                return any(site.connected for site in answer.sites if site.name == LOCAL_SITE)
        return False

    return look


def _healthy(socket: Path) -> Callable[[], Coroutine[object, object, bool]]:
    async def look() -> bool:
        with contextlib.suppress(SendenseError):
            await rpc.wait_healthy(socket, timeout_s=_ASK_WITHIN_S, what="")
            return True
        return False

    return look


def _exists(file: Path) -> Callable[[], Coroutine[object, object, bool]]:
    async def look() -> bool:
        return file.exists()

    return look


@contextlib.asynccontextmanager
async def _child(
    name: str, command: Sequence[str], log_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    with log_path.open("ab") as log_file:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            env={**os.environ, PARENT_ENV: str(os.getpid())},
            start_new_session=True,  # Ctrl-C goes to us alone; we stop the children in order
        )
    try:
        yield child
    finally:
        await process.stop(child, grace_s=_STOP_GRACE_S[name])


async def _finished(command: Sequence[str]) -> bytes:
    """Output of a command that ends by itself."""
    child = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C goes to us alone
    )
    try:
        output, errors = await child.communicate()
    finally:
        await process.stop(child, grace_s=_FINISH_GRACE_S)
    if child.returncode:
        raise SendenseError(Reason.REASON_INTERNAL, errors.decode(errors="replace").strip())
    return output


async def until_signal() -> None:
    """Returns at Ctrl-C or SIGTERM."""
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
