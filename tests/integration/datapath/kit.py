# SPDX-License-Identifier: Apache-2.0
"""nbdkit as the source, qemu-nbd as the target, the real tunnel in between."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.tunnel.kit import Hub, until

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.datapath import CopyOrder, Source, start_mover
from sendense_agent.domain.extents import Extents
from sendense_common import process
from sendense_common.paths import private_dir


@contextlib.asynccontextmanager
async def nbdkit(socket: Path, capacity_bytes: int, *arguments: str) -> AsyncIterator[Source]:
    """A disk to read."""
    child = await asyncio.create_subprocess_exec(
        *process.dying_with_parent(["nbdkit", "--foreground", f"--unix={socket}", *arguments])
    )
    try:
        await until(socket.exists, "nbdkit listens")
        yield Source(socket, "", capacity_bytes)
    finally:
        await process.stop(child, grace_s=3)


@contextlib.asynccontextmanager
async def qemu_nbd(
    hub: Hub, name: str, layer: Path, *options: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """An export that the hub's gateway lets the agent open."""
    socket = hub.paths.run / f"{name}.sock"
    command = ["qemu-nbd", "--persistent", "--shared=3", f"--socket={socket}", f"--export-name={name}"]
    child = await asyncio.create_subprocess_exec(
        *process.dying_with_parent([*command, *(options or ["--format=qcow2"]), str(layer)])
    )
    hub.authorization.targets[f"nbd/{name}"] = socket
    try:
        await until(socket.exists, "qemu-nbd listens")
        yield child
    finally:
        await process.stop(child, grace_s=3)


async def new_layer(path: Path, capacity_bytes: int, backing: str = "") -> Path:
    options = ["-b", backing, "-F", "qcow2"] if backing else []
    await checked("qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), str(capacity_bytes))
    return path


async def checked(*command: str) -> None:
    child = await asyncio.create_subprocess_exec(*command)
    assert await child.wait() == 0, command


async def as_raw(layer: Path) -> bytes:
    """What a layer's chain holds."""
    raw = layer.with_suffix(".raw")
    await checked("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(layer), str(raw))
    return raw.read_bytes()


@dataclass
class Copied:
    """What a mover said."""

    records: list[pb.LedgerRecord] = field(default_factory=list)
    progress: list[pb.DiskProgress] = field(default_factory=list)
    mismatches: list[tuple[int, int]] = field(default_factory=list)
    done: pb.DiskDone | None = None

    def check_digests(self, image: bytes) -> None:
        for record in self.records:
            data = image[record.offset_bytes : record.offset_bytes + record.length_bytes]
            assert len(data) == record.length_bytes
            if record.sha256:
                assert hashlib.sha256(data).digest() == record.sha256
            else:
                assert not any(data)


def order(hub: Hub, directory: Path, source: Source, name: str, **settings) -> CopyOrder:
    settings.setdefault("read", Extents.whole(source.capacity_bytes))
    settings.setdefault("zero", Extents())
    settings.setdefault("write_zeroes", False)
    return CopyOrder(
        disk_key=2000,
        label="Hard disk 1",
        capacity_bytes=source.capacity_bytes,
        source=source,
        tunnel=hub.enrol(),
        export_name=name,
        local_socket=private_dir(directory / "x") / f"{name}.sock",
        **settings,
    )


async def copy(wanted: CopyOrder) -> Copied:
    """Runs a mover to its end."""
    said = Copied()
    async with start_mover(wanted) as mover:
        async for event in mover.events():
            if isinstance(event, pb.DiskProgress):
                said.progress.append(event)
            elif isinstance(event, pb.Checkpoint):
                said.records.extend(event.records)
            elif isinstance(event, pb.AuditMismatch):
                said.mismatches += zip(event.extents_bytes[::2], event.extents_bytes[1::2], strict=True)
            else:
                said.done = event
    return said


def flat(extents: Sequence[tuple[int, int]]) -> Extents:
    return Extents(extents)
