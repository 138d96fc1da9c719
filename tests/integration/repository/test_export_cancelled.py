# SPDX-License-Identifier: Apache-2.0
"""An export whose opening is cancelled, at any moment, leaves no process and no socket."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from sendense_hub.repository import layers
from sendense_hub.repository.export import open_export

pytestmark = pytest.mark.integration

_MIB = 1024 * 1024
_MOMENTS = 40


def serving(socket: Path) -> list[str]:
    """Processes that serve on this socket."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(socket).encode() in command:
                found.append(command.decode())
    return found


async def test_an_export_whose_opening_is_cancelled_leaves_nothing(short_tmp: Path) -> None:
    layer, socket = short_tmp / "disk.qcow2", short_tmp / "e.sock"
    await layers.create(layer, _MIB, None)

    async def opening():
        return await open_export(layer, "e", socket, capacity_bytes=_MIB, connections=2)

    began = time.monotonic()
    await (await opening()).stop()
    took_s = time.monotonic() - began
    for moment in range(_MOMENTS):
        task = asyncio.create_task(opening())
        await asyncio.sleep(took_s * moment / _MOMENTS)
        task.cancel()
        began = time.monotonic()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(result, BaseException):
            await result.stop()
        assert time.monotonic() - began < 9, "it was waited for although nothing was written"
        assert serving(socket) == [], f"cancelled after {moment}/{_MOMENTS} of {took_s:.2f} s"
        assert not socket.exists()
