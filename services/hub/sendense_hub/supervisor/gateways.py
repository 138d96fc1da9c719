# SPDX-License-Identifier: Apache-2.0
"""The gateways of a hub, and which of them gets the next connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Sequence

from sendense_common.paths import HubPaths
from sendense_hub.gateway import handover
from sendense_hub.gateway.limits import Limits
from sendense_hub.supervisor import child

log = logging.getLogger(__name__)

_STOP_GRACE_S = 5.0
_LOOK_AGAIN_S = 0.2


class Gateways:
    """Running gateways."""

    def __init__(self, paths: HubPaths, limits: Limits) -> None:
        self._command = [
            sys.executable,
            "-m",
            "sendense_hub.gateway",
            "--state",
            str(paths.state),
            "--run",
            str(paths.run),
            f"--channels-per-connection={limits.channels_per_connection}",
            f"--connections-per-agent={limits.connections_per_agent}",
            f"--logins={limits.logins}",
            f"--logins-per-address={limits.logins_per_address}",
            f"--login-seconds={limits.login_timeout_s}",
        ]
        self._ends: list[handover.SupervisorEnd] = []
        self._changed = asyncio.Event()

    async def run(self, name: str, stopping: asyncio.Event) -> None:
        """Keeps one gateway running until `stopping` is set; each life has a control socket of its own."""
        wait = child.RestartWait()
        while not stopping.is_set():
            ours, theirs = handover.pair()
            end = handover.SupervisorEnd(ours)
            with theirs:
                process = await child.start(
                    [*self._command, "--control-fd", str(theirs.fileno())], inherit=[theirs.fileno()]
                )
            self._ends.append(end)
            watching = asyncio.create_task(end.watch(self._changed.set))
            try:
                await child.until_ended(name, process, stopping, wait, stop_grace_s=_STOP_GRACE_S)
            finally:
                self._ends.remove(end)
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                end.close()

    async def hand_over(self, sock: socket.socket) -> None:
        """Gives a connection to the gateway with the fewest; waits for one if none is ready."""
        while True:
            for end in sorted(self._ready(), key=lambda each: each.connections):
                if end.hand_over(sock):
                    return
            await self._change()

    async def wait_ready(self) -> None:
        """Returns when at least one gateway takes connections."""
        while not self._ready():
            await self._change()

    def _ready(self) -> Sequence[handover.SupervisorEnd]:
        return [end for end in self._ends if end.ready]

    async def _change(self) -> None:
        """Returns when a gateway said something, or soon: one that was full says nothing when it is not."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN_S):
                await self._changed.wait()
