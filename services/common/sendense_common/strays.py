# SPDX-License-Identifier: Apache-2.0
"""Processes of this user that nobody owns any more: found by their command line, ended by descriptor.

A process is looked at again once a descriptor holds it: a number that was given to another program meanwhile
never ends that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_GONE_WITHIN_S = 15.0
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Running:
    """A process."""

    pid: int
    parent_pid: int
    words: tuple[str, ...]
    """Its command line; at least one."""

    @property
    def program(self) -> str:
        """Its name, without directories."""
        return Path(self.words[0]).name

    def option(self, name: str) -> str:
        """The value of `--name=VALUE`; empty when it has none."""
        prefix = f"--{name}="
        return next((word.removeprefix(prefix) for word in self.words if word.startswith(prefix)), "")


def look_at(pid: int) -> Running | None:
    """One process of this user; None when it is gone, or somebody else's. Blocks."""
    entry = Path("/proc") / str(pid)
    try:
        if entry.stat().st_uid != os.getuid():
            return None
        words = [os.fsdecode(word) for word in (entry / "cmdline").read_bytes().split(b"\0")]
        facts = (entry / "stat").read_text(errors="replace")
    except (OSError, ValueError):
        return None
    if not words[0]:  # it has ended, and nobody has waited for it yet
        return None
    # The name in brackets may hold anything; state and parent come after it.
    return Running(pid, int(facts.rpartition(")")[2].split()[1]), tuple(words))


def running() -> Iterator[Running]:
    """All of this user. Blocks."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (found := look_at(int(entry.name))) is not None:
            yield found


async def end(unwanted: Callable[[Running], bool]) -> tuple[list[Running], list[Running]]:
    """Kills each process that is unwanted; returns when they are gone, or after 15 s.

    Returns:
        Those that are gone, and those that do not end.
    """
    with contextlib.ExitStack() as stack:
        held: list[tuple[Running, int]] = []
        for found in await asyncio.to_thread(lambda: [each for each in running() if unwanted(each)]):
            descriptor = stack.enter_context(_process(found.pid))
            again = look_at(found.pid)
            if descriptor < 0 or again is None or not unwanted(again):
                continue
            held.append((found, descriptor))
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = asyncio.get_running_loop().time() + _GONE_WITHIN_S
        while not all(_ended(descriptor) for _, descriptor in held):
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        gone = [found for found, descriptor in held if _ended(descriptor)]
        return gone, [found for found, _ in held if found not in gone]


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor that means this process, whatever its number is given to later; -1 when it is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        descriptor = -1
    try:
        yield descriptor
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _ended(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])
