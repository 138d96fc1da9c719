# SPDX-License-Identifier: Apache-2.0
"""One writer per layer: who wrote it before is ended, and nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from sendense_hub.repository import layers, writers
from sendense_hub.repository.export import open_export

pytestmark = pytest.mark.integration

CAPACITY = 1 << 20


@pytest.mark.parametrize("frozen", [False, True])
async def test_the_old_writer_of_a_layer_is_gone_and_others_stay(
    tmp_path: Path, short_tmp: Path, frozen: bool
):
    mine, other = tmp_path / "mine.qcow2", tmp_path / "other.qcow2"
    exports = []
    for layer in (mine, other):
        await layers.create(layer, CAPACITY, None)
        exports.append(
            await open_export(
                layer, layer.stem, short_tmp / f"{layer.stem}.sock", capacity_bytes=CAPACITY, connections=1
            )
        )
    old, neighbour = exports
    try:
        if frozen:
            os.kill(vars(old)["_child"].pid, signal.SIGSTOP)
        async with asyncio.timeout(40):
            await writers.end_others(mine)
            assert await vars(old)["_child"].wait() == -signal.SIGKILL
        assert not neighbour.exited
        again = await open_export(mine, "again", short_tmp / "a.sock", capacity_bytes=CAPACITY, connections=1)
        exports.append(again)
        assert not again.exited, "the file is not locked any more"
    finally:
        for export in exports:
            await export.stop()


async def test_without_a_writer_nothing_happens(tmp_path: Path):
    await writers.end_others(tmp_path / "none.qcow2")
