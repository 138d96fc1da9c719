# SPDX-License-Identifier: Apache-2.0
"""Exports: one qemu-nbd per layer on a unix socket, ready only when it has proved what it serves."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import json
import logging
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir
from sendense_hub.repository import layers, programs
from sendense_hub.repository.layout import MARKER, PROBE

log = logging.getLogger(__name__)

_READY_WITHIN_S = 15.0
_ASK_EVERY_S = 0.05
_STOP_GRACE_S = 10.0
_STDERR_LINES = 40
# One more for a person with nbdinfo.
_SPARE_CONNECTIONS = 1

# Fastest first. Direct I/O and io_uring depend on file system, kernel and container.
_WAYS: tuple[tuple[str, ...], ...] = (
    ("--cache=none", "--aio=io_uring"),
    ("--cache=none", "--aio=native"),
    ("--cache=writeback", "--aio=threads"),
)
_PROBE_BYTES = 1024 * 1024
_PROBE_IS_OLD_S = 3600.0
# Of exports that are being started, run, or are being stopped.
_sockets: set[Path] = set()


def is_open(socket: Path) -> bool:
    """Whether an export of this process has this socket."""
    return socket in _sockets


class Export:
    """A running qemu-nbd; made by `open_export`."""

    def __init__(self, name: str, socket: Path, child: asyncio.subprocess.Process) -> None:
        self.name = name
        self.socket = socket
        self._child = child
        self._lines: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._reading = asyncio.create_task(self._read_stderr())

    @property
    def uri(self) -> str:
        """For NBD clients on this host."""
        return f"nbd+unix:///{self.name}?socket={self.socket}"

    @property
    def exited(self) -> bool:
        """Whether it has ended by itself, or was stopped."""
        return self._child.returncode is not None

    @property
    def stderr_tail(self) -> str:
        """Its last words."""
        return "\n".join(self._lines)

    async def stop(self, *, grace_s: float = _STOP_GRACE_S) -> None:
        """Ends it, and returns when it is proved gone: what it wrote is in the file. Twice is once."""
        try:
            await process.stop(self._child, grace_s=grace_s)
            await asyncio.gather(self._reading, return_exceptions=True)
        finally:
            self.socket.unlink(missing_ok=True)
            _sockets.discard(self.socket)

    async def _read_stderr(self) -> None:
        assert self._child.stderr is not None
        async for line in self._child.stderr:
            self._lines.append(line.decode(errors="replace").rstrip())


async def open_export(
    layer: Path,
    name: str,
    socket: Path,
    *,
    capacity_bytes: int,
    connections: int,
    read_only: bool = False,
    file_format: str = "qcow2",
) -> Export:
    """Serves a layer; returns when a handshake has shown the right name and size.

    Args:
        layer: the file.
        name: of the export.
        socket: where; replaced if it is there.
        capacity_bytes: that it must have.
        connections: clients that may be connected at once, besides one for a person.
        read_only: whether it can be read only.
        file_format: "qcow2" or "raw".

    Raises:
        SendenseError: EXPORT_FAILED with qemu-nbd's own words, TOOL_MISSING.
    """
    private_dir(socket.parent)
    way = await _way(layer.parent)
    return await _serve(
        layer,
        name,
        socket,
        capacity_bytes,
        [*way, "--discard=unmap", f"--shared={connections + _SPARE_CONNECTIONS}"]
        + (["--read-only"] if read_only else []),
        file_format,
    )


async def open_copy(copy: Path, name: str, socket: Path, *, capacity_bytes: int, file_format: str) -> Export:
    """Serves a file that is no layer, for reading: like `open_export`, and nothing is tried out beside it."""
    private_dir(socket.parent)
    options = [*_WAYS[-1], "--read-only", f"--shared={1 + _SPARE_CONNECTIONS}"]
    return await _serve(copy, name, socket, capacity_bytes, options, file_format)


async def _serve(
    layer: Path,
    name: str,
    socket: Path,
    capacity_bytes: int,
    options: Sequence[str],
    file_format: str = "qcow2",
) -> Export:
    socket.unlink(missing_ok=True)
    _sockets.add(socket)
    try:
        child = await programs.start(
            [
                "qemu-nbd",
                "--persistent",  # without it, it ends after the first handshake
                f"--format={file_format}",
                f"--socket={socket}",
                f"--export-name={name}",
                *options,
                str(layer),
            ]
        )
    except BaseException:
        socket.unlink(missing_ok=True)  # a start that was cancelled has ended the child, not what it made
        _sockets.discard(socket)
        raise
    export = Export(name, socket, child)
    try:
        found = await _ask_until_ready(export)
        if found != capacity_bytes:
            raise SendenseError(
                Reason.REASON_DISK_MISMATCH,
                f"the export {name} has {found} bytes, the disk has {capacity_bytes}",
            )
    except BaseException:
        # It has no grace: nobody has written yet, and qemu-nbd forgets a SIGTERM that comes while it starts.
        await export.stop(grace_s=0.0)
        raise
    return export


async def _ask_until_ready(export: Export) -> int:
    """The size that a handshake shows."""
    deadline = asyncio.get_running_loop().time() + _READY_WITHIN_S
    answer = "no socket"
    while asyncio.get_running_loop().time() < deadline:
        if export.socket.exists():
            asked = await programs.run("nbdinfo", "--json", export.uri)
            if asked.code == 0:
                (facts,) = json.loads(asked.output)["exports"]
                if facts["export-name"] == export.name:
                    return int(facts["export-size"])
            answer = asked.errors
        if export.exited:
            break
        await asyncio.sleep(_ASK_EVERY_S)
    await export.stop(grace_s=0.0)
    raise SendenseError(
        Reason.REASON_EXPORT_FAILED,
        f"qemu-nbd does not serve {export.name}: {export.stderr_tail or answer}",
        remedy="Look at the words of qemu-nbd above; `sendense doctor` checks what it needs.",
        export=export.name,
    )


@functools.cache
def _ways() -> dict[int, Sequence[str]]:
    """By device: what has been found to work there."""
    return {}


async def _way(directory: Path) -> Sequence[str]:
    """The fastest way of doing I/O that works in the file system of `directory`."""
    device = directory.stat().st_dev
    if device not in _ways():
        try:
            _ways()[device] = await _probe(directory)
        except (SendenseError, OSError) as error:
            if isinstance(error, SendenseError) and error.reason == Reason.REASON_TOOL_MISSING:
                raise
            log.warning("what is fastest in %s cannot be tried out now: %s", directory, error)
            return _WAYS[-1]  # a full or read-only file system can still be read
    return _ways()[device]


async def _probe(directory: Path) -> Sequence[str]:
    """Tries them out with a file of its own in the repository's root: a complete point gets no more files."""
    place = next((each for each in directory.parents if (each / MARKER).exists()), directory)
    layer = place / f"{PROBE}{uuid.uuid4()}.qcow2"
    with tempfile.TemporaryDirectory() as sockets, contextlib.ExitStack() as stack:
        for left in place.glob(f"{PROBE}*.qcow2"):  # by a hub that was killed just then
            if time.time() - left.stat().st_mtime > _PROBE_IS_OLD_S:
                left.unlink(missing_ok=True)
        stack.callback(layer.unlink, missing_ok=True)
        await layers.create(layer, _PROBE_BYTES, None)
        for way in _WAYS[:-1]:
            try:
                export = await _serve(layer, "probe", Path(sockets) / "probe.sock", _PROBE_BYTES, way)
            except SendenseError as error:
                if error.reason == Reason.REASON_TOOL_MISSING:
                    raise
                continue
            await export.stop()
            return way
    return _WAYS[-1]
