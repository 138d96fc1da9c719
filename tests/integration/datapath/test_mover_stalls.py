# SPDX-License-Identifier: Apache-2.0
"""Slow, silent and broken ends of a copy, with real programs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tests.integration.datapath.kit import as_raw, copy, nbdkit, new_layer, order, qemu_nbd
from tests.integration.tunnel.kit import Hub, target

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import Mover, start_mover
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

MIB = 1024 * 1024


async def waits_in_plain_sight(mover: Mover) -> None:
    """It tells so at least once and at most ten times a second, and does not burn the processor."""
    times: list[float] = []
    used_s = 0.0
    async with asyncio.timeout(30):
        async for event in mover.events():
            assert isinstance(event, pb.DiskProgress)
            times.append(time.monotonic())
            if len(times) == 2:  # it has started
                used_s = _processor_s(mover)
            if len(times) == 8:
                break
    pauses = sorted(after - before for before, after in pairwise(times))
    assert pauses[len(pauses) // 2] < 1.0
    assert (times[-1] - times[0]) / (len(times) - 1) > 0.1
    assert _processor_s(mover) - used_s < 0.25 * (times[-1] - times[1])


def _processor_s(mover: Mover) -> float:
    fields = Path(f"/proc/{mover._child.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_source_that_stalls_still_gives_progress(hub: Hub, short_tmp: Path):
    layer = await new_layer(short_tmp / "layer", 4 * MIB)
    stalling = nbdkit(short_tmp / "s", 4 * MIB, "--filter=delay", "memory", "4M", "delay-read=60")
    async with stalling as source, qemu_nbd(hub, "e1", layer):
        async with start_mover(order(hub, short_tmp, source, "e1")) as mover:
            await waits_in_plain_sight(mover)


async def test_a_target_that_stalls_still_gives_progress(hub: Hub, short_tmp: Path):
    options = ["-e", "e1", "--filter=delay", "memory", "4M", "delay-write=60"]
    async with (
        nbdkit(short_tmp / "s", 4 * MIB, "pattern", "4M") as source,
        nbdkit(short_tmp / "t", 4 * MIB, *options),
    ):
        hub.authorization.targets["nbd/e1"] = short_tmp / "t"
        async with start_mover(order(hub, short_tmp, source, "e1")) as mover:
            await waits_in_plain_sight(mover)


async def test_ff01_a_server_that_never_greets_is_waited_for_in_plain_sight(hub: Hub, short_tmp: Path):
    """As qemu-nbd does with one connection more than it shares; the engine's deadline is a unit test's."""

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with nbdkit(short_tmp / "s", MIB, "memory", "1M") as source, target(hub, "nbd/e1", never):
        async with start_mover(order(hub, short_tmp, source, "e1")) as mover:
            await waits_in_plain_sight(mover)


BREAKS = {
    "source": Reason.REASON_SOURCE_READ_FAILED,
    "target": Reason.REASON_TARGET_WRITE_FAILED,
    "export": Reason.REASON_TARGET_WRITE_FAILED,
    "tunnel": Reason.REASON_TUNNEL_LOST,
}


@pytest.mark.parametrize("breaks", BREAKS)
async def test_an_end_that_goes_away_in_the_middle_fails_the_copy(hub: Hub, short_tmp: Path, breaks: str):
    """Either program is killed, the hub takes the export back, or the agent's key is revoked."""
    layer = await new_layer(short_tmp / "layer", 64 * MIB)
    slow = ["--filter=rate", "pattern", "64M", "rate=200M"]
    async with nbdkit(short_tmp / "s", 64 * MIB, *slow) as source, qemu_nbd(hub, "e1", layer) as server:
        wanted = order(hub, short_tmp, source, "e1", checkpoint_bytes=2 * MIB)
        async with start_mover(wanted) as mover:
            with pytest.raises(SendenseError) as failed:  # noqa: PT012
                async for event in mover.events():
                    if isinstance(event, pb.Checkpoint):
                        match breaks:
                            case "source":
                                _kill(source.socket)
                            case "target":
                                server.kill()
                            case "export":
                                hub.authorization.targets.clear()
                            case "tunnel":
                                hub.authorization.agents.clear()
    assert failed.value.reason == BREAKS[breaks]
    assert "Hard disk 1" in failed.value.message


def _kill(socket: Path) -> None:
    """The nbdkit that serves there."""
    for each in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if each.name.isdigit() and f"--unix={socket}".encode() in (each / "cmdline").read_bytes():
                os.kill(int(each.name), signal.SIGKILL)


@pytest.mark.parametrize("size", [512, 64 * 1024 - 512, MIB - 512, MIB, MIB + 512, 16 * MIB + 512])
async def test_disks_of_any_size_are_copied_to_the_last_byte(hub: Hub, short_tmp: Path, size: int):
    layer = await new_layer(short_tmp / "layer", size)
    async with nbdkit(short_tmp / "s", size, "pattern", str(size)) as source, qemu_nbd(hub, "e1", layer):
        said = await copy(order(hub, short_tmp, source, "e1"))
    # nbdkit's pattern is the offset of each 8 bytes, big-endian.
    image = b"".join(offset.to_bytes(8, "big") for offset in range(0, size, 8))
    assert await as_raw(layer) == image
    said.check_digests(image)
    assert sum(record.length_bytes for record in said.records) == size


async def test_a_mover_that_is_done_ends_by_itself_and_well(hub: Hub, short_tmp: Path):
    layer = await new_layer(short_tmp / "layer", MIB)
    async with nbdkit(short_tmp / "s", MIB, "pattern", "1M") as source, qemu_nbd(hub, "e1", layer):
        async with start_mover(order(hub, short_tmp, source, "e1")) as mover:
            assert isinstance([event async for event in mover.events()][-1], pb.DiskDone)
        assert mover._child.returncode == 0
