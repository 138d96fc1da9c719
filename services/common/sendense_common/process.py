# SPDX-License-Identifier: Apache-2.0
"""Processes: they die with their parent, and stopping one always ends in a waited-for exit.

Linux only: PR_SET_PDEATHSIG. The signal is bound to the *thread* that started the child, so children are
started from the main thread's event loop, never from a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4

KILLED_WITHIN_S = 30.0
"""How long a process that was killed may take to be gone."""


def die_with_parent(parent_pid: int | None = None) -> None:
    """Has the kernel send SIGTERM to this process when its parent ends; called first thing.

    Args:
        parent_pid: who the parent was when it started us; if it is gone already, this process ends at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent_pid is not None and os.getppid() != parent_pid:
        sys.exit(0)


def forbid_core_dumps() -> None:
    """Keeps this process's memory out of core files and from unprivileged tracers; for those with secrets.

    A core limit of 0 would not do: a core handler behind a pipe ignores it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def dying_with_parent(command: Sequence[str], *, parent_signal: str = "TERM") -> list[str]:
    """`command` so that it gets a signal when we end, for programs that cannot ask for it themselves."""
    return ["setpriv", "--pdeathsig", parent_signal, *command]


async def stop(process: asyncio.subprocess.Process, *, grace_s: float) -> int:
    """Ends a child (SIGTERM, `grace_s` seconds, SIGKILL) if it still runs; returns its exit code.

    Cancelled in its grace, it kills at once: whoever cancels has no time left.

    Raises:
        SendenseError: DEADLINE_EXCEEDED when it has not ended long after SIGKILL: it hangs in the kernel, as
            in a read from a disk that does not answer, and whatever it held it still holds.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        # Not `asyncio.timeout`: in a task that was cancelled before, as one is that cleans up, Python 3.11's
        # ends with CancelledError, and the child would stay.
        ending = asyncio.ensure_future(process.wait())
        try:
            ended, _ = await asyncio.wait({ending}, timeout=grace_s)
        except asyncio.CancelledError:
            _kill(process)
            raise
        if not ended:
            _kill(process)
            ended, _ = await asyncio.wait({ending}, timeout=KILLED_WITHIN_S)
        if not ended:
            ending.cancel()
            raise SendenseError(
                Reason.REASON_DEADLINE_EXCEEDED,
                f"process {process.pid} has not ended {KILLED_WITHIN_S:g} s after it was killed",
                remedy="It waits for a disk or a mount that does not answer: look at that.",
                pid=process.pid,
            )
    return await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
