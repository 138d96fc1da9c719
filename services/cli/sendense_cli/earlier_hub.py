# SPDX-License-Identifier: Apache-2.0
"""What an earlier `sendense up` has left when it was killed: services that still end their jobs.

They end by themselves, and meanwhile have the port and the state directories. Whoever does not wait for them
is told to choose another port, which all agents of other sites would have to be told.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from sendense_common.errors import SendenseError
from sendense_common.paths import Installation

_ENDS_WITHIN_S = 45.0
"""A hub whose parent died gives its API 30 seconds for its jobs, then its gateways 5."""
_PORT_IS_FREE_WITHIN_S = 5.0
"""Once nothing of ours lives: its gateways end with it. Longer, and somebody else has the port."""
_LOOK_EVERY_S = 0.2


def locks(installation: Installation) -> list[Path]:
    """That the services of an installation hold for as long as they live."""
    hub, credentials = installation.hub.state, installation.credentials.state
    return [hub / "hub.lock", hub / "api.lock", credentials / "credentials.lock"]


async def waited_for(
    choose: Callable[[], str],
    locked: Sequence[Path],
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> str:
    """What `choose` gives once the earlier services have ended; `say` is told once that they are waited for.

    Args:
        choose: gives the address to listen on; what it refuses with `retryable` may be had later. Blocks.
        locked: see `locks`. One that is held too long is its service's to complain of.
        say: for people.
        clock: seconds.
        sleep: as `asyncio.sleep`.

    Raises:
        SendenseError: what `choose` refused with.
    """
    deadline, told = clock() + _ENDS_WITHIN_S, False
    while True:
        held = _any_held(locked)
        if not held:
            deadline = min(deadline, clock() + _PORT_IS_FREE_WITHIN_S)
        late = clock() >= deadline
        if late or not held:
            try:
                return await asyncio.to_thread(choose)
            except SendenseError as refusal:
                if late or not refusal.retryable:
                    raise
        if not told:
            told = True
            say(
                f"waiting for services of an earlier start to end, {_ENDS_WITHIN_S:.0f} seconds at most"
                if held
                else "the hub's port is in use: waiting for it, in case an earlier start has just ended"
            )
        await sleep(_LOOK_EVERY_S)


def _any_held(files: Iterable[Path]) -> bool:
    for file in files:
        try:
            with file.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return True
    return False
