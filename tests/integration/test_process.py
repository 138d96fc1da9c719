# SPDX-License-Identifier: Apache-2.0
"""Ending child processes."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

_DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


async def deaf_child() -> asyncio.subprocess.Process:
    """A process that does not listen to SIGTERM."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", _DEAF, stdout=asyncio.subprocess.PIPE)
    assert child.stdout is not None
    assert await child.stdout.readline() == b"deaf\n"
    return child


async def test_a_child_that_does_not_listen_is_killed_after_its_grace() -> None:
    child = await deaf_child()
    assert await process.stop(child, grace_s=0.1) == -9


async def test_stopping_that_is_cancelled_kills_at_once() -> None:
    child = await deaf_child()
    stopping = asyncio.create_task(process.stop(child, grace_s=600))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert await asyncio.wait_for(child.wait(), 30) == -9


async def test_clean_up_in_a_cancelled_task_kills_what_does_not_listen() -> None:
    """Python 3.11's own time-out ends with CancelledError there: the child stayed."""
    child = await deaf_child()

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await process.stop(child, grace_s=0.1)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert child.returncode == -9


class _HangsInTheKernel:
    """What no test can make: a process that SIGKILL does not end, as its disk does not answer."""

    pid, returncode = 4711, None

    async def wait(self) -> int:
        await asyncio.Event().wait()
        return 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


async def test_a_process_that_even_a_kill_does_not_end_is_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "KILLED_WITHIN_S", 0.05)
    stuck = cast(asyncio.subprocess.Process, _HangsInTheKernel())
    with pytest.raises(SendenseError, match="process 4711 has not ended") as caught:
        await asyncio.wait_for(process.stop(stuck, grace_s=0.0), 30)
    assert caught.value.reason == Reason.REASON_DEADLINE_EXCEEDED
