# SPDX-License-Identifier: Apache-2.0
"""Proof that no process of ours is left, also where one was killed that had others below it.

Linux gives orphans to the nearest ancestor that asked for them (PR_SET_CHILD_SUBREAPER): whatever the
services have started becomes our child when its own parent is gone, and can be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 45.0
_LOOK_EVERY_S = 0.05
_REAP_EVERY_S = 10.0


@contextlib.asynccontextmanager
async def none_left(*, grace_s: float = _GRACE_S) -> AsyncIterator[None]:
    """Returns when every process that was started in the block, by whomever below us, has ended.

    Args:
        grace_s: how long they may take after the block; then they are killed.
    """
    before = _children()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    try:
        yield
    finally:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        while left := _reap(_children() - before):
            if loop.time() > deadline:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(_LOOK_EVERY_S)


async def reap_orphans(ours: set[int]) -> None:
    """Runs until it is cancelled: orphans that end leave no zombies; others wait for `ours`."""
    while True:
        await asyncio.sleep(_REAP_EVERY_S)
        _reap(_children() - ours)


def _reap(children: set[int]) -> set[int]:
    """Those of them that still run."""
    running = set()
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                running.add(pid)
    return running


def _children() -> set[int]:
    """Processes whose parent we are."""
    found = set()
    us = str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # PID (NAME) STATE PARENT …; a name may hold anything, also parentheses.
            if stat.read_text(errors="replace").rpartition(") ")[2].split()[1] == us:
                found.add(int(stat.parent.name))
    return found
