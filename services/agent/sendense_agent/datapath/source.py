# SPDX-License-Identifier: Apache-2.0
"""Disks to read, each served by an nbdkit of its own on a private unix socket."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir

_READY_WITHIN_S = 30.0
_ASK_EVERY_S = 0.05
_STOP_GRACE_S = 3.0
_REQUEST_TIMEOUT_S = 120
_STDERR_LINES = 40


@dataclass(frozen=True)
class Source:
    """A disk that can be read by NBD."""

    socket: Path
    export_name: str
    capacity_bytes: int


@contextlib.asynccontextmanager
async def datastore_source(
    *, url: str, cookie: str, trust_pem: str, capacity_bytes: int, run_dir: Path, label: str
) -> AsyncIterator[Source]:
    """Serves a flat file of a datastore, read by HTTPS with the session of this operation.

    Args:
        url: of the flat file.
        cookie: of the vCenter session, as "vmware_soap_session=…"; handed over by descriptor.
        trust_pem: certificates that verify the server.
        capacity_bytes: that the file must have.
        run_dir: for the socket and the certificates.
        label: for messages and file names.

    Raises:
        SendenseError: SOURCE_READ_FAILED, VCENTER_SESSION_LOST, VCENTER_CERTIFICATE_NOT_TRUSTED,
            DISK_MISMATCH or TOOL_MISSING.
    """
    private_dir(run_dir)
    socket, trust = run_dir / f"{label}.sock", run_dir / f"{label}.pem"
    with contextlib.ExitStack() as files:
        files.callback(trust.unlink, missing_ok=True)
        files.callback(socket.unlink, missing_ok=True)
        socket.unlink(missing_ok=True)
        trust.write_text(trust_pem)
        reading, writing = os.pipe()
        try:
            os.write(writing, cookie.encode())
            os.close(writing)
            command = [
                "nbdkit",
                "--foreground",
                "--exit-with-parent",
                "--readonly",
                f"--unix={socket}",
                "curl",
                f"url={url}",
                f"cainfo={trust}",
                f"cookie=-{reading}",
                "protocols=https",
                f"timeout={_REQUEST_TIMEOUT_S}",
            ]
            child = await _start(command, reading)
        finally:
            os.close(reading)
        server = _Server(child, socket, label)
        try:
            found = await server.capacity()
            if found != capacity_bytes:
                raise SendenseError(
                    Reason.REASON_DISK_MISMATCH,
                    f"{label}: the datastore's file has {found} bytes, the disk has {capacity_bytes}",
                    remedy="The disk may be of a kind that needs VMware's library (VDDK).",
                )
            yield Source(socket, "", capacity_bytes)
        finally:
            await server.stop()


async def _start(command: list[str], descriptor: int) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *process.dying_with_parent(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=[descriptor],
        )
    except FileNotFoundError as error:
        raise SendenseError(
            Reason.REASON_TOOL_MISSING,
            f"{command[0]} cannot be started: {error.strerror}",
            remedy="Install the package nbdkit.",
            tool=command[0],
        ) from error


class _Server:
    """A running nbdkit and its words."""

    def __init__(self, child: asyncio.subprocess.Process, socket: Path, label: str) -> None:
        self._child = child
        self._socket = socket
        self._label = label
        self._lines: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
        self._reading = asyncio.create_task(self._read_stderr())

    async def capacity(self) -> int:
        """The size that a handshake shows, in bytes."""
        deadline = asyncio.get_running_loop().time() + _READY_WITHIN_S
        answer = "no answer"
        while asyncio.get_running_loop().time() < deadline and self._child.returncode is None:
            if self._socket.exists():
                child = await asyncio.create_subprocess_exec(
                    *process.dying_with_parent(["nbdinfo", "--json", f"nbd+unix:///?socket={self._socket}"]),
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                )
                output, errors = await child.communicate()
                if child.returncode == 0:
                    (facts,) = json.loads(output)["exports"]
                    return int(facts["export-size"])
                answer = errors.decode(errors="replace").strip()
                break  # it listens, so what it says is final
            await asyncio.sleep(_ASK_EVERY_S)
        await self.stop()
        raise self._explain("\n".join(self._lines) or answer)

    async def stop(self) -> None:
        """Ends it; twice is once."""
        await process.stop(self._child, grace_s=_STOP_GRACE_S)
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read_stderr(self) -> None:
        assert self._child.stderr is not None
        async for line in self._child.stderr:
            self._lines.append(line.decode(errors="replace").rstrip())

    def _explain(self, words: str) -> SendenseError:
        """What nbdkit means: it shows a refused login as an export without a name."""
        if "401" in words:
            return SendenseError(
                Reason.REASON_VCENTER_SESSION_LOST,
                f"{self._label}: the vCenter no longer knows the session: {words}",
                remedy="Start the backup again.",
            )
        if "certificate" in words.lower() or "SSL" in words:
            return SendenseError(
                Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED,
                f"{self._label}: the server of the datastore's files is not trusted: {words}",
                remedy="The host name must be one that the certificate is for: add the vCenter by that name.",
            )
        return SendenseError(
            Reason.REASON_SOURCE_READ_FAILED,
            f"{self._label}: the disk cannot be opened: {words}",
            remedy="Look at the vCenter's log and at the datastore.",
        )
