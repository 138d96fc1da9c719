# SPDX-License-Identifier: Apache-2.0
"""A child process that is started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import signal
from collections.abc import Coroutine, Iterator, Mapping, Sequence

from sendense_common import process
from sendense_common.service import DIED_ENV, PARENT_ENV, TAKEN_OVER_FD_ENV

log = logging.getLogger(__name__)

_SHORTEST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
# Alive for so long, a child counts as well again.
_WELL_AFTER_S = 10.0


class RestartWait:
    """Seconds before a child that died is started again: doubled as long as it keeps dying early."""

    def __init__(self) -> None:
        self._next_s = _SHORTEST_WAIT_S

    def after(self, lived_s: float) -> float:
        """The wait after a child that lived so long."""
        if lived_s >= _WELL_AFTER_S:
            self._next_s = _SHORTEST_WAIT_S
        wait_s = self._next_s
        self._next_s = min(2 * self._next_s, _LONGEST_WAIT_S)
        return wait_s


async def start(
    command: Sequence[str], *, inherit: Sequence[int] = (), env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Starts one of our services so that it ends with this process.

    Args:
        command: program and arguments.
        inherit: descriptors it gets besides the standard ones.
        env: variables it gets besides ours.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, PARENT_ENV: str(os.getpid()), **(env or {})},
        pass_fds=inherit,
        # Ctrl-C in a terminal goes to us alone; we stop the children in order.
        start_new_session=True,
    )


async def run(name: str, command: Sequence[str], stopping: asyncio.Event, *, stop_grace_s: float) -> None:
    """Keeps a child running until `stopping` is set, then ends it.

    Each is told how the last one ended that had taken over what there is to do: one that ended before that is
    not to blame for what an earlier one, or an earlier life of this process, has left.

    Args:
        name: for the log.
        command: program and arguments.
        stopping: ends it.
        stop_grace_s: seconds between SIGTERM and SIGKILL.
    """
    wait, died = RestartWait(), ""
    while not stopping.is_set():
        with _pipe() as (heard, says):
            with says:  # the child's alone once it runs
                env = {DIED_ENV: died, TAKEN_OVER_FD_ENV: str(says.fileno())}
                child = await start(command, inherit=[says.fileno()], env=env)
            code = await until_ended(name, child, stopping, wait, stop_grace_s=stop_grace_s)
            if heard.read(1):
                died = _how(code)


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    """Its end to read from, which never waits, and the other one."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with io.FileIO(reading) as heard, io.FileIO(writing, "w") as says:
        yield heard, says


async def until_ended(
    name: str,
    child: asyncio.subprocess.Process,
    stopping: asyncio.Event,
    wait: RestartWait,
    *,
    stop_grace_s: float,
) -> int:
    """Returns when `child` died and it is time for the next one, or when it was ended after `stopping`.

    Returns:
        Its exit code.
    """
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    log.info("%s runs as process %d", name, child.pid)
    try:
        await first(child.wait(), stopping.wait())
    finally:
        code = await process.stop(child, grace_s=stop_grace_s)
    if stopping.is_set():
        log.info("%s has stopped (exit code %d)", name, code)
        return code
    wait_s = wait.after(loop.time() - started_at)
    log.error("%s died (exit code %d); starting it again in %.1f s", name, code, wait_s)
    await first(asyncio.sleep(wait_s), stopping.wait())
    return code


def _how(code: int) -> str:
    """A process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # of real time
        return f"killed by signal {-code}"


async def first(*awaitables: Coroutine[object, object, object]) -> None:
    """Returns when one of them does; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
