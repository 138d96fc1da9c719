# SPDX-License-Identifier: Apache-2.0
"""What an init system does: starts the services, starts again what died, ends all in reverse order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from sendense_common import process
from sendense_common.service import PARENT_ENV

MARK = "SENDENSE_TEST"
"""Variable in the environment of all that we started, and of all that those start."""

_AGAIN_AFTER_S = 0.5
_MODULES = {
    "sendense_hub.main": "supervisor",
    "sendense_hub.api": "api",
    "sendense_hub.gateway": "gateway",
    "sendense_agent.main": "agent",
    "sendense_agent.worker": "worker",
    "sendense_agent.datapath.mover": "mover",
    "sendense_credentials.main": "credentials",
    "sendense_lab.main": "vcenter",
}
_PROGRAMS = ("qemu-nbd", "nbdkit")
# Names of exports and of sockets begin with so many digits of their job's ID.
_JOB_DIGITS = 8
KINDS = (*_MODULES.values(), *_PROGRAMS)
"""What a process of the product can be."""


class Unit:
    """One service that is kept running."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._command, self._log, self._environment = command, log, environment
        self._child: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.starts = 0

    async def start(self) -> None:
        """Runs it, and again whenever it ends, until `stop`."""
        self._child = await self._begin()
        self._keeping = asyncio.create_task(self._keep())

    async def _begin(self) -> asyncio.subprocess.Process:
        self.starts += 1
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self._environment, PARENT_ENV: str(os.getpid())},
                start_new_session=True,  # Ctrl-C is ours
            )  # fmt: skip

    async def _keep(self) -> None:
        while True:
            assert self._child is not None
            await self._child.wait()
            await asyncio.sleep(_AGAIN_AFTER_S)
            self._child = await self._begin()

    async def stop(self, grace_s: float) -> int:
        """Ends it; its exit code, 0 when it was never started."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._child is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(signal.SIGCONT)
        return await process.stop(self._child, grace_s=grace_s)


def processes(mark: str, job_id: str = "") -> dict[str, list[int]]:
    """PIDs of the product's processes that carry our mark, by kind; those that ended are not among them.

    Args:
        mark: of the stage.
        job_id: if given, a process that can be told to work for another job than this is left out.
    """
    mine = job_id.replace("-", "")[:_JOB_DIGITS]
    wanted = f"{MARK}={mark}".encode()
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if mine and words[0] and Path(words[0]).name in _PROGRAMS and mine not in _joined(words):
            continue
        if kind := _kind(words):
            found[kind].append(int(entry.name))
    return found


def _joined(words: Sequence[str]) -> str:
    return " ".join(words).replace("-", "")


def _kind(words: Sequence[str]) -> str:
    program = Path(words[0]).name
    if program in _PROGRAMS:
        return program
    if program.startswith("python") and "-m" in words[:-1]:
        return _MODULES.get(words[words.index("-m") + 1], "")
    return ""


def marked(mark: str) -> list[str]:
    """All processes that carry our mark, of whatever kind."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {entry.name}: {words.strip()[:160]}")
    return [each for each in found if not each.endswith(": ")]
