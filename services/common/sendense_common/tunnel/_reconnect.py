# SPDX-License-Identifier: Apache-2.0
"""Staying connected: dial for ever, wait between attempts, say each change once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.tunnel._client import Tunnel, TunnelConfig, dial

log = logging.getLogger(__name__)

# A connection that lived this long was a good one: the next failure starts from the shortest wait again.
_GOOD_AFTER_S = 10.0


@dataclass
class Backoff:
    """Waits between attempts: full jitter, so that many agents do not come back at the same moment."""

    shortest_s: float = 0.2
    """The first wait is at most this long."""
    longest_s: float = 3.0
    """No wait is longer while the hub cannot be reached: jobs wait for the link to come back."""
    refused_s: float = 30.0
    """While the hub can be reached and says no, or shows another key."""
    superseded_s: float = 60.0
    """Two hosts with one key would otherwise take over from each other for ever."""
    rng: random.Random = field(default_factory=random.Random)
    _failures: int = 0

    def succeeded(self) -> None:
        """The next wait is the first one again."""
        self._failures = 0

    def next_s(self, *, superseded: bool = False, refused: bool = False) -> float:
        """Seconds to wait now."""
        if superseded:
            return self.rng.uniform(self.superseded_s / 2, self.superseded_s)
        ceiling = min(
            self.refused_s if refused else self.longest_s, self.shortest_s * 2.0 ** min(self._failures, 32)
        )
        self._failures += 1
        return self.rng.uniform(0, ceiling)


async def keep_connected(
    config: TunnelConfig,
    on_up: Callable[[Tunnel], contextlib.AbstractAsyncContextManager[object]],
    stopping: asyncio.Event,
    *,
    backoff: Backoff | None = None,
) -> None:
    """Dials until `stopping` is set.

    Args:
        config: whom to dial.
        on_up: entered with each new connection (publish and forward there) and left when it is gone; a
            `SendenseError` from entering counts as a failed attempt.
        stopping: ends it, also in the middle of a wait.
        backoff: the waits.
    """
    backoff = backoff or Backoff()
    hub = f"{config.host}:{config.port}"
    last = ""
    while not stopping.is_set():
        superseded = refused = False
        try:
            async with dial(config) as tunnel, on_up(tunnel):
                log.info("connected to the hub at %s as %s", hub, config.agent_id)
                last = ""
                up_at = asyncio.get_running_loop().time()
                await _first(tunnel, stopping)
                if stopping.is_set():
                    return
                error = await tunnel.wait_closed()
                superseded = tunnel.superseded
                if asyncio.get_running_loop().time() - up_at >= _GOOD_AFTER_S:
                    backoff.succeeded()
                log.warning("%s", error or f"the hub at {hub} closed the connection")
        except SendenseError as failure:
            refused = failure.reason == Reason.REASON_TUNNEL_REFUSED
            if str(failure) != last:  # an hour without a network is one line, not hundreds
                log.warning("not connected: %s. %s", failure, failure.remedy)
                last = str(failure)
        wait_s = backoff.next_s(superseded=superseded, refused=refused)
        if superseded:
            log.error(
                "another host uses the key of agent %s; waiting %.0f s. Give each agent a key of its own.",
                config.agent_id,
                wait_s,
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await stopping.wait()


async def _first(tunnel: Tunnel, stopping: asyncio.Event) -> None:
    """Returns when the connection is gone or `stopping` is set."""
    waits = [asyncio.ensure_future(tunnel.wait_closed()), asyncio.ensure_future(stopping.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waits:
            each.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
