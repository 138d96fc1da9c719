# SPDX-License-Identifier: Apache-2.0
"""Networks and mounts of our own: a room for the hub, one for the agent, one for the vCenter, links between.

Each room is a network and a mount namespace that lives as long as one sleeping process of ours, which dies
with us: the kernel takes links, addresses and file systems away with the last process in it, however we end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from sendense_common import process

_BURST = "256k"
_LATENCY = "400ms"


class NoRooms(Exception):  # noqa: N818 - reads better where it is caught
    """Namespaces cannot be made here; the message says why."""


@dataclass(frozen=True)
class Room:
    """One network with mounts of its own."""

    name: str
    pid: int

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` in it; its working directory is `/`."""
        spaces = f"/proc/{self.pid}/ns"
        return ["nsenter", f"--net={spaces}/net", f"--mount={spaces}/mnt", *command]

    def path(self, path: Path) -> Path:
        """A path of this room, as it can be opened from outside."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    async def run(self, *command: str) -> str:
        """Runs a command in it; RuntimeError with its words when it fails."""
        return await run(*self.enter(*command))

    async def mount(self, directory: Path, size_mib: int) -> None:
        """A small file system of its own, which nobody outside sees."""
        directory.mkdir(parents=True, exist_ok=True)
        await self.run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "none", str(directory))


@dataclass(frozen=True)
class Link:
    """A cable between two rooms."""

    ends: tuple[tuple[Room, str], tuple[Room, str]]
    """Room and device of each end."""
    usual_mbit: int

    async def cut(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        room, device = self.ends[0]
        await room.run("ip", "link", "set", device, "down")

    async def mend(self) -> None:
        """As at first."""
        room, device = self.ends[0]
        await room.run("ip", "link", "set", device, "up")

    async def speed(self, mbit: int) -> None:
        """So much in each direction."""
        for room, device in self.ends:
            await room.run(
                "tc", "qdisc", "replace", "dev", device, "root",
                "tbf", "rate", f"{mbit}mbit", "burst", _BURST, "latency", _LATENCY,
            )  # fmt: skip

    async def usual_speed(self) -> None:
        """As at first."""
        await self.speed(self.usual_mbit)


async def run(*command: str) -> str:
    """Runs a command; RuntimeError with its words when it fails."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await child.communicate())[0].decode(errors="replace").strip()
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: {output}")
    return output


@contextlib.asynccontextmanager
async def room(name: str) -> AsyncIterator[Room]:
    """A new room, gone when the block ends.

    Raises:
        NoRooms: this user, or this kernel, does not make namespaces.
    """
    words = ["unshare", "--net", "--mount", "sh", "-c", "echo made; exec sleep infinity"]
    try:
        child = await asyncio.create_subprocess_exec(
            *process.dying_with_parent(words, parent_signal="KILL"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is ours
        )
    except OSError as error:
        raise NoRooms(f"setpriv and unshare are needed (package util-linux): {error}") from error
    try:
        assert child.stdout is not None
        if await child.stdout.readline() != b"made\n":
            why = (await child.communicate())[1].decode().strip()
            raise NoRooms(
                f"network namespaces cannot be made (root is needed; this is user {os.getuid()}): {why}"
            )
        made = Room(name, child.pid)
        await made.run("ip", "link", "set", "lo", "up")
        yield made
    except FileNotFoundError as error:
        raise NoRooms(f"ip, tc and nsenter are needed (packages iproute2, util-linux): {error}") from error
    finally:
        await process.stop(child, grace_s=0.0)


async def link(left: Room, right: Room, number: int, mbit: int) -> Link:
    """Joins two rooms; they are 10.77.NUMBER.1 and 10.77.NUMBER.2 to each other."""
    devices = f"to-{right.name}", f"to-{left.name}"
    await run(
        "ip", "link", "add", devices[0], "netns", str(left.pid),
        "type", "veth", "peer", "name", devices[1], "netns", str(right.pid),
    )  # fmt: skip
    ends = (left, devices[0]), (right, devices[1])
    for last, (where, device) in enumerate(ends, start=1):
        await where.run("ip", "addr", "add", f"10.77.{number}.{last}/24", "dev", device)
        await where.run("ip", "link", "set", device, "up")
    made = Link(ends, mbit)
    await made.usual_speed()
    return made
