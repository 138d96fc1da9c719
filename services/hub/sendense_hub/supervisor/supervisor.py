# SPDX-License-Identifier: Apache-2.0
"""Start and stop of a hub.

Start: host key, listener (bound, so that a taken port is found before anything runs), API, gateways; then
connections are accepted and the endpoint file is written. Stop: the endpoint and the listener go first, then
the API ends while the gateways still carry what it has to tell the agents, then the gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths, private_dir
from sendense_common.tunnel import ensure_key
from sendense_hub.gateway.limits import Limits
from sendense_hub.supervisor import child, listener
from sendense_hub.supervisor.gateways import Gateways

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SupervisorConfig:
    """One hub."""

    paths: HubPaths
    """Where it keeps things."""
    api_command: Sequence[str]
    """Starts the API; it serves health on `paths.api_socket`."""
    listen_host: str = "0.0.0.0"  # noqa: S104 - agents dial in from other sites
    """Address agents dial."""
    listen_port: int = 0
    """0 takes a free one; see `paths.endpoint_file`."""
    limits: Limits = field(default_factory=Limits)
    """Of each gateway; also in `paths.ssh_limits_file`, for whoever asks what they are."""
    gateway_count: int = 2
    """Processes that serve SSH; more spread disks over more cores."""
    api_ready_within_s: float = 60.0
    """Then the start has failed. An API that ends, of a supervisor that was killed, is waited for."""
    api_stop_grace_s: float = 30.0
    """For the API to cancel and clean up what runs."""


async def supervise(config: SupervisorConfig, stopping: asyncio.Event) -> None:
    """Runs a hub until `stopping` is set; returns when all its processes have ended.

    Raises:
        SendenseError: the port is taken, another hub uses the state directory, or the API does not get ready.
    """
    paths = config.paths
    private_dir(paths.state)
    private_dir(paths.run)
    private_dir(paths.agents_dir)
    with contextlib.ExitStack() as held:
        held.enter_context(_locked(paths.state))
        ensure_key(paths.host_key_file, "sendense-hub")
        held.callback(paths.ssh_limits_file.unlink, missing_ok=True)
        paths.ssh_limits_file.write_text(config.limits.in_words(config.gateway_count) + "\n")
        paths.endpoint_file.unlink(missing_ok=True)  # a hub that was killed has left it
        listening = held.enter_context(listener.listen(config.listen_host, config.listen_port))
        host, port = listening.getsockname()[:2]

        gateways = Gateways(paths, config.limits)
        stop_api, stop_gateways = asyncio.Event(), asyncio.Event()
        failure: SendenseError | None = None
        async with asyncio.TaskGroup() as tasks:
            api = tasks.create_task(
                child.run("API", config.api_command, stop_api, stop_grace_s=config.api_stop_grace_s)
            )
            for number in range(config.gateway_count):
                tasks.create_task(gateways.run(f"gateway {number}", stop_gateways))
            accepting: asyncio.Task[None] | None = None
            try:
                if await _ready(config, gateways, stopping):
                    accepting = tasks.create_task(listener.accept(listening, gateways))
                    with _endpoint(paths.endpoint_file, f"{host}:{port}"):
                        log.info("the hub is ready; agents dial %s port %d", host, port)
                        await stopping.wait()
            except SendenseError as error:
                failure = error  # raised once everything is stopped, not inside a group of exceptions
            finally:
                if accepting:
                    accepting.cancel()
                    await asyncio.wait([accepting])
                listening.close()
                stop_api.set()
                await asyncio.wait([api])
                stop_gateways.set()
        if failure:
            raise failure


async def _ready(config: SupervisorConfig, gateways: Gateways, stopping: asyncio.Event) -> bool:
    """True when API and gateways are ready, False when `stopping` was set before."""

    async def ready() -> None:
        await rpc.wait_healthy(config.paths.api_socket, timeout_s=config.api_ready_within_s, what="the API")
        await gateways.wait_ready()

    waiting = asyncio.ensure_future(ready())
    await child.first(asyncio.wait([waiting]), stopping.wait())
    if waiting.done():
        await waiting
        return True
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return False


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[None]:
    """One hub per state directory."""
    with (state / "hub.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SendenseError(
                Reason.REASON_SERVICE_UNAVAILABLE,
                f"another hub uses the state directory {state}",
                remedy="Stop it, or give this one a directory of its own with --state.",
            ) from error
        yield


@contextlib.contextmanager
def _endpoint(file: Path, address: str) -> Iterator[None]:
    """The file says where to dial, for as long as somebody accepts there."""
    hidden = file.with_name(f".{file.name}")
    hidden.write_text(address + "\n")
    hidden.rename(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
