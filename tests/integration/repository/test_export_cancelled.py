# SPDX-License-Identifier: Apache-2.0
"""Exports whose opening is cancelled leave nothing; there may be as many at once as are needed."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest
from tests.integration.tunnel.kit import until

from sendense_hub.repository import layers
from sendense_hub.repository.export import Export, open_export

pytestmark = pytest.mark.integration

_MIB = 1024 * 1024
_MOMENTS = 40
_MANY = 112


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

    async def opening() -> Export:
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


_OPENING = """
import asyncio, sys
from pathlib import Path
from sendense_hub.repository.export import open_export

async def main():
    layer, socket = map(Path, sys.argv[1:])
    while True:
        print("opening", flush=True)
        export = await open_export(layer, "e", socket, capacity_bytes=1 << 20, connections=2)
        await export.stop()

asyncio.run(main())
"""


async def test_ff13_no_export_outlives_a_hub_that_is_killed_while_it_starts_one(short_tmp: Path) -> None:
    layer, socket = short_tmp / "disk.qcow2", short_tmp / "e.sock"
    await layers.create(layer, _MIB, None)
    for moment in range(16):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _OPENING, str(layer), str(socket), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        for _ in range(2):  # the first one also looks for the fastest way
            await child.stdout.readline()
        await asyncio.sleep(0.003 * moment)
        child.kill()
        await child.wait()
        await until(lambda: not serving(socket), f"nothing is left, killed {3 * moment} ms after a start")


async def test_ff05_more_exports_at_once_than_any_pool_of_ports_had(short_tmp: Path) -> None:
    layer = short_tmp / "disk.qcow2"
    await layers.create(layer, _MIB, None)

    async def serve(number: int) -> Export:
        """Read-only, for they all serve one layer."""
        socket = short_tmp / "x" / f"{number}.sock"
        return await open_export(
            layer, f"e{number}", socket, capacity_bytes=_MIB, connections=2, read_only=True
        )

    exports = []
    try:
        for start in range(0, _MANY, 8):
            exports += await asyncio.gather(*map(serve, range(start, start + 8)))
        assert len({export.socket for export in exports}) == _MANY
        assert not any(export.exited for export in exports)
    finally:
        await asyncio.gather(*(export.stop() for export in exports))
    assert serving(short_tmp / "x") == []
