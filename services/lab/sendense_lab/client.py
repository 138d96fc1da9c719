# SPDX-License-Identifier: Apache-2.0
"""Starting a simulated vCenter and playing with it, from tests and demos."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense_common import process
from sendense_common.paths import runtime_dir

_READY_WITHIN_S = 20.0
_PIECE_BYTES = 4 * 1024 * 1024
_LINE_BYTES = 64 * 1024 * 1024


class LabError(Exception):
    """The lab refused a command."""


@dataclass(frozen=True)
class LabMachine:
    """A VM of the lab."""

    name: str
    moref: str
    instance_uuid: str
    disks: list[int]
    """Device keys."""


class LabClient:
    """Commands to one running vCenter; see `vcenter.control.Commands`."""

    def __init__(self, directory: Path) -> None:
        """Args: directory: the lab's state directory."""
        self._directory = directory

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *,
        username: str = "administrator@vsphere.local",
        password: str = "correct horse",  # noqa: S107 - of a simulation
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> AsyncIterator[LabClient]:
        """Runs `sendense-lab vcenter` until the block ends.

        Args:
            directory: for its state.
            username: that it takes.
            password: that it takes.
            options: more of the command line.
            environment: more of it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        secret = directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(password, encoding="utf-8")
        with (directory / "vcenter.log").open("ab") as log_file:
            child = await asyncio.create_subprocess_exec(
                *process.dying_with_parent([sys.executable, "-m", "sendense_lab.main", "vcenter"]),
                f"--state={directory}",
                f"--username={username}",
                f"--password-file={secret}",
                *options,
                stdout=asyncio.subprocess.PIPE,
                stderr=log_file,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C goes to whoever started it, which stops it last
            )
        try:
            assert child.stdout is not None
            async with asyncio.timeout(_READY_WITHIN_S):
                line = await child.stdout.readline()
            if not line.startswith(b"ready"):
                raise LabError(f"the simulated vCenter did not start; read {directory / 'vcenter.log'}")
            yield cls(directory)
        finally:
            await process.stop(child, grace_s=5)

    @property
    def host(self) -> str:
        """Address."""
        return self._endpoint()[0]

    @property
    def port(self) -> int:
        """TCP port."""
        return int(self._endpoint()[1])

    @property
    def ca_file(self) -> Path:
        """Certificate of its authority."""
        return self._directory / "ca.pem"

    @property
    def server_certificate(self) -> Path:
        """Its own certificate."""
        return self._directory / "server.pem"

    def _endpoint(self) -> tuple[str, str]:
        host, _, port = (self._directory / "endpoint").read_text().strip().rpartition(":")
        return host, port

    async def command(self, command: str, /, **arguments: Any) -> Any:
        """Any command by its name; LabError with the lab's words."""
        reader, writer = await asyncio.open_unix_connection(
            str(runtime_dir(self._directory) / "control.sock"), limit=_LINE_BYTES
        )
        try:
            writer.write(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            await writer.drain()
            answer = json.loads(await reader.readline())
        finally:
            writer.close()
        if "error" in answer:
            raise LabError(answer["error"])
        return answer["result"]

    async def add_vm(self, name: str, disks: Sequence[int | dict[str, Any]]) -> LabMachine:
        """A VM; a disk is its capacity in bytes, or the fields of `DiskSpec`."""
        specs = [{"capacity_bytes": disk} if isinstance(disk, int) else disk for disk in disks]
        return LabMachine(name=name, **await self.command("add_vm", name=name, disks=specs))

    async def guest_write(self, vm: str, disk: int, offset_bytes: int, data: bytes) -> None:
        """The guest writes."""
        for start in range(0, len(data), _PIECE_BYTES):
            piece = base64.b64encode(data[start : start + _PIECE_BYTES]).decode()
            await self.command("guest_write", vm=vm, disk=disk, offset_bytes=offset_bytes + start, data=piece)

    async def guest_zero(self, vm: str, disk: int, offset_bytes: int, length_bytes: int) -> None:
        """The guest writes zeroes."""
        await self.command(
            "guest_zero", vm=vm, disk=disk, offset_bytes=offset_bytes, length_bytes=length_bytes
        )

    async def guest_read(self, vm: str, disk: int, offset_bytes: int, length_bytes: int) -> bytes:
        """What the guest sees."""
        return base64.b64decode(
            await self.command(
                "guest_read", vm=vm, disk=disk, offset_bytes=offset_bytes, length_bytes=length_bytes
            )
        )

    async def snapshots(self, vm: str) -> list[dict[str, str]]:
        """Those that exist: moref, name, description."""
        state = await self.command("state", vm=vm)
        return list(state["snapshots"])

    async def counters(self) -> dict[str, int]:
        """How often things happened: "logins", "logins refused", "call <method>", "folder bytes" and more."""
        return dict(await self.command("counters"))

    async def inject_fault(
        self, operation: str, fault: str, *, message: str = "", at_call: int = 1, times: int = 1
    ) -> None:
        """Has calls fail; see `PlannedFault`."""
        await self.command(
            "inject_fault", operation=operation, fault=fault, message=message, at_call=at_call, times=times
        )
