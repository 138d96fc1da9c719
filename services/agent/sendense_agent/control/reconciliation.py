# SPDX-License-Identifier: Apache-2.0
"""What workers that were killed left on the agent's host: ended and removed every few minutes.

Processes die with their parents, and workers remove their files, so there is rarely anything. Ours is a
process that has a socket in this agent's directories and whose worker is gone; a file that nobody has bound
or locked, and that is older than a minute. Snapshots are not looked at: the hub knows which of them live.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

from sendense_common import strays
from sendense_common.acts import Act, ActLog, Outcome
from sendense_common.bound_sockets import bound_in, sockets_of
from sendense_common.paths import AgentPaths
from sendense_common.strays import Running

log = logging.getLogger(__name__)

_EVERY_S = 180.0
# What is being made at this moment is neither bound nor locked yet.
_SETTLED_AFTER_S = 60.0
_WORKER, _MOVER = "sendense_agent.worker", "sendense_agent.datapath.mover"
_FLOCK_COLUMNS = 6


class Reconciliation:
    """One agent's; its rounds never overlap."""

    def __init__(self, paths: AgentPaths) -> None:
        self._exports = paths.exports_dir
        self._sources = paths.run / "n"
        self._acting = asyncio.Lock()
        self._log = ActLog()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A round now and every few minutes, until the block ends."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def round(self) -> list[Act]:
        """What was put right and found."""
        async with self._acting:
            ended, staying = await strays.end(self._is_stray)
            acts = [_process(each, Outcome.DONE) for each in ended]
            acts += [_process(each, Outcome.FAILED) for each in staying]
            acts += await asyncio.to_thread(self._remove_files)
            self._log.write(acts)
            return acts

    async def _run(self) -> NoReturn:
        while True:
            try:
                await self.round()
            except Exception:
                log.exception("leftovers are looked for again in %.0f s", _EVERY_S)
            await asyncio.sleep(_EVERY_S)

    def _is_stray(self, process: Running) -> bool:
        if process.program == "nbdkit":
            ours = Path(process.option("unix")).parent == self._sources
        elif _MOVER in process.words:
            ours = not sockets_of(process.pid).isdisjoint(bound_in(self._exports).values())
        else:
            return False
        if not ours:
            return False
        parent = strays.look_at(process.parent_pid)
        return parent is None or _WORKER not in parent.words

    def _remove_files(self) -> list[Act]:
        """Blocks."""
        acts = []
        bound = bound_in(self._exports)
        for path in _settled(self._exports):
            if path.name not in bound:
                path.unlink(missing_ok=True)
                acts.append(Act("stale_socket", str(path), "no mover has it"))
        # Of each source: lock, socket, configuration, directory; alive while it is locked or served.
        bound, locked = bound_in(self._sources), _locked_inodes()
        sources: dict[str, list[Path]] = defaultdict(list)
        for path in _settled(self._sources):
            sources[path.stem].append(path)
        for name, paths in sorted(sources.items()):
            if f"{name}.sock" in bound or _inode(self._sources / f"{name}.lock") in locked:
                continue
            for path in paths:
                _remove(path)
                acts.append(Act("stale_source", str(path), "no worker reads that disk"))
        return acts


def _process(found: Running, outcome: Outcome) -> Act:
    why = "its worker is gone" + ("" if outcome is Outcome.DONE else ", and it does not end")
    name = "mover" if _MOVER in found.words else found.program
    return Act("stray_process", f"{name} {found.pid}", why, outcome)


def _settled(directory: Path) -> list[Path]:
    """Entries that are not being made at this moment."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(directory.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.lstat().st_ctime > _SETTLED_AFTER_S:
                    found.append(path)
    return found


def _locked_inodes() -> set[int]:
    """Of all files that somebody holds a lock of, on any device: one too many keeps a file, no more."""
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        columns = line.split()
        if len(columns) >= _FLOCK_COLUMNS and columns[1] == "FLOCK":
            found.add(int(columns[5].rpartition(":")[2]))
    return found


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
