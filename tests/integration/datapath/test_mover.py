# SPDX-License-Identifier: Apache-2.0
"""One disk from a real nbdkit through the real tunnel into a real qemu-nbd."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import pytest
from tests.integration.datapath.kit import as_raw, checked, copy, nbdkit, new_layer, order, qemu_nbd
from tests.integration.tunnel.kit import Hub, until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import start_mover
from sendense_agent.domain.extents import Extents
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
ODD = 9 * MIB + 512


def disk(seed: int, capacity_bytes: int = ODD) -> bytes:
    """Data, zeroes and single bytes among zeroes, the same for the same seed."""
    dice = random.Random(seed)
    image = bytearray(capacity_bytes)
    for start in range(0, capacity_bytes, 64 * 1024):
        if dice.random() < 0.5:
            length = min(64 * 1024, capacity_bytes - start)
            image[start : start + length] = hashlib.shake_128(f"{seed}{start}".encode()).digest(length)
    for _ in range(5):
        image[dice.randrange(capacity_bytes)] = 1
    image[-1] = 7
    return bytes(image)


async def test_a_full_copy_is_identical_and_written_down(hub: Hub, short_tmp: Path):
    image = disk(1)
    (short_tmp / "image").write_bytes(image)
    layer = await new_layer(short_tmp / "layer", ODD)
    async with nbdkit(short_tmp / "s", ODD, "--readonly", "file", str(short_tmp / "image")) as source:
        async with qemu_nbd(hub, "e1", layer):
            said = await copy(order(hub, short_tmp, source, "e1"))
    assert await as_raw(layer) == image
    said.check_digests(image)
    assert sum(record.length_bytes for record in said.records) == ODD
    assert said.done is not None
    counted = said.done.progress
    assert counted.read_bytes == ODD
    assert counted.copied_bytes + counted.zero_bytes == ODD
    # The grains of noise do not compress; those with a single byte in them do.
    assert counted.copied_bytes - 5 * 64 * 1024 <= counted.wire_bytes <= 1.1 * counted.copied_bytes + 65536
    assert [each.read_bytes for each in said.progress] == sorted(each.read_bytes for each in said.progress)
    assert not (short_tmp / "x" / "e1.sock").exists()


async def test_rule_12_changed_zeroes_cover_the_old_data(hub: Hub, short_tmp: Path):
    before, now = disk(2), bytearray(disk(2))
    now[2 * MIB : 3 * MIB] = bytes(MIB)  # changed, read as zeroes
    now[4 * MIB : 7 * MIB] = bytes(3 * MIB)  # changed and unallocated
    now[ODD - 512 :] = b"n" * 512
    base = await new_layer(short_tmp / "base", ODD)
    (short_tmp / "image").write_bytes(before)
    await checked(
        "qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", str(short_tmp / "image"), str(base)
    )
    (short_tmp / "image").write_bytes(now)
    layer = await new_layer(short_tmp / "layer", ODD, backing="base")
    read, zero = Extents([(2 * MIB, MIB), (ODD - 512, 512)]), Extents([(4 * MIB, 3 * MIB)])
    async with nbdkit(short_tmp / "s", ODD, "file", str(short_tmp / "image")) as source:
        async with qemu_nbd(hub, "e1", layer):
            said = await copy(order(hub, short_tmp, source, "e1", read=read, zero=zero, write_zeroes=True))
    assert await as_raw(layer) == now
    said.check_digests(bytes(now))
    assert said.done is not None
    assert said.done.progress.read_bytes == MIB + 512
    assert said.done.progress.copied_bytes == 512
    assert said.done.progress.zero_bytes == 4 * MIB


async def test_nothing_to_copy_is_done_at_once(hub: Hub, short_tmp: Path):
    layer = await new_layer(short_tmp / "layer", ODD)
    async with nbdkit(short_tmp / "s", ODD, "memory", str(ODD)) as source, qemu_nbd(hub, "e1", layer):
        said = await copy(order(hub, short_tmp, source, "e1", read=Extents(), write_zeroes=True))
    assert said.records == []
    assert said.done is not None
    assert said.done.progress.read_bytes == said.done.progress.copied_bytes == 0


@pytest.mark.parametrize("after", [0, 3, 8])
async def test_a_failed_read_fails_the_copy_and_is_never_written(hub: Hub, short_tmp: Path, after: int):
    """Every read from the given one on fails; what is in the layer was read without an error."""
    image = hashlib.shake_128(b"x").digest(ODD)
    (short_tmp / "image").write_bytes(image)
    layer = await new_layer(short_tmp / "layer", ODD)
    pread = (
        f'if [ "$4" -ge {after * MIB} ]; then echo EIO injected >&2; exit 1; fi; '
        f'dd if={short_tmp}/image skip="$4" count="$3" iflag=skip_bytes,count_bytes bs=1M status=none'
    )
    async with nbdkit(short_tmp / "s", ODD, "eval", f"get_size=echo {ODD}", f"pread={pread}") as source:
        async with qemu_nbd(hub, "e1", layer):
            with pytest.raises(SendenseError, match="cannot be read at byte") as failed:
                await copy(order(hub, short_tmp, source, "e1"))
    assert failed.value.reason == Reason.REASON_SOURCE_READ_FAILED
    stored = await as_raw(layer)
    for start in range(0, ODD, MIB):
        assert stored[start : start + MIB] in (image[start : start + MIB], bytes(min(MIB, ODD - start)))
    assert not any(stored[after * MIB :])


@pytest.mark.parametrize("what", ["pwrite", "flush", "zero"])
async def test_a_failed_write_zero_or_flush_fails_the_copy(hub: Hub, short_tmp: Path, what: str):
    (short_tmp / "image").write_bytes(disk(3))
    scripts = {"pwrite": "pwrite=cat >/dev/null", "flush": "flush=true", "zero": "zero=true"}
    scripts[what] += "; echo ENOSPC injected >&2; exit 1"
    can = [f"can_{name}=true" for name in ("write", "flush", "zero")]
    target = nbdkit(
        short_tmp / "t",
        ODD,
        "-e",
        "e1",
        "eval",
        f"get_size=echo {ODD}",
        "pread=exit 1",
        *can,
        *scripts.values(),
    )
    hub.authorization.targets["nbd/e1"] = short_tmp / "t"
    async with nbdkit(short_tmp / "s", ODD, "file", str(short_tmp / "image")) as source, target:
        with pytest.raises(SendenseError, match="No space left") as failed:
            await copy(order(hub, short_tmp, source, "e1", write_zeroes=True))
    assert failed.value.reason == Reason.REASON_TARGET_WRITE_FAILED


async def test_a_checkpoint_holds_only_what_was_flushed(hub: Hub, short_tmp: Path):
    """qemu-nbd dies by SIGKILL in the middle: everything in the ledger so far is in the layer."""
    image = hashlib.shake_128(b"y").digest(64 * MIB)
    (short_tmp / "image").write_bytes(image)
    layer = await new_layer(short_tmp / "layer", len(image))
    async with nbdkit(
        short_tmp / "s", len(image), "--filter=rate", "file", str(short_tmp / "image"), "rate=400M"
    ) as source:
        async with qemu_nbd(hub, "e1", layer) as server:
            wanted = order(hub, short_tmp, source, "e1", checkpoint_bytes=4 * MIB)
            records: list[pb.LedgerRecord] = []
            async with start_mover(wanted) as mover:
                with pytest.raises(SendenseError) as failed:  # noqa: PT012
                    async for event in mover.events():
                        if isinstance(event, pb.Checkpoint):
                            records.extend(event.records)
                            if len(records) > 8:
                                server.kill()
    assert failed.value.reason == Reason.REASON_TARGET_WRITE_FAILED
    await checked("qemu-img", "check", "-q", "-r", "leaks", str(layer))
    stored = await as_raw(layer)
    assert 8 < len(records) < 64
    for record in records:
        part = slice(record.offset_bytes, record.offset_bytes + record.length_bytes)
        assert hashlib.sha256(stored[part]).digest() == record.sha256


async def test_sizes_that_differ_are_found_before_the_first_byte(hub: Hub, short_tmp: Path):
    layer = await new_layer(short_tmp / "layer", ODD + 512)
    async with nbdkit(short_tmp / "s", ODD, "memory", str(ODD)) as source, qemu_nbd(hub, "e1", layer):
        with pytest.raises(SendenseError) as failed:
            await copy(order(hub, short_tmp, source, "e1"))
    assert failed.value.reason == Reason.REASON_DISK_MISMATCH


async def test_an_export_that_the_hub_refuses_is_named(hub: Hub, short_tmp: Path):
    async with nbdkit(short_tmp / "s", ODD, "memory", str(ODD)) as source:
        with pytest.raises(SendenseError, match="no job of yours") as failed:
            await copy(order(hub, short_tmp, source, "somebody-elses"))
    assert failed.value.reason == Reason.REASON_TUNNEL_REFUSED


async def test_ff09_a_mover_that_is_killed_is_noticed(hub: Hub, short_tmp: Path):
    layer = await new_layer(short_tmp / "layer", ODD)
    async with (
        nbdkit(short_tmp / "s", ODD, "--filter=delay", "memory", str(ODD), "delay-read=60") as source,
        qemu_nbd(hub, "e1", layer),
    ):
        async with start_mover(order(hub, short_tmp, source, "e1")) as mover:
            with pytest.raises(SendenseError) as failed:  # noqa: PT012
                async for _ in mover.events():
                    mover._child.kill()
    assert failed.value.reason == Reason.REASON_COPY_PROCESS_DIED


async def test_progress_comes_also_when_nothing_moves_and_a_limit_holds(hub: Hub, short_tmp: Path):
    layer = await new_layer(short_tmp / "layer", 64 * MIB)
    async with nbdkit(short_tmp / "s", 64 * MIB, "sparse-random", "64M") as source:
        async with qemu_nbd(hub, "e1", layer):
            async with start_mover(order(hub, short_tmp, source, "e1")) as mover:
                await mover.limit(1)  # a byte a second: nothing more is read
                await asyncio.sleep(0)
                events = 0
                async for _ in mover.events():
                    events += 1
                    if events == 8:
                        break
            assert events == 8
    await until(lambda: not (short_tmp / "x" / "e1.sock").exists(), "the mover's socket is gone")


async def test_ff17_a_copy_after_a_failed_one_uses_nothing_of_it(hub: Hub, short_tmp: Path):
    """The export of the first dies under it; the second, of another attempt, is whole."""
    image = hashlib.shake_128(b"again").digest(8 * MIB)
    (short_tmp / "image").write_bytes(image)
    async with nbdkit(short_tmp / "s", len(image), "file", str(short_tmp / "image")) as source:
        first = await new_layer(short_tmp / "first", len(image))
        second = await new_layer(short_tmp / "second", len(image))
        async with qemu_nbd(hub, "job-1-2000", first) as server:
            async with start_mover(order(hub, short_tmp, source, "job-1-2000")) as mover:
                server.kill()
                with pytest.raises(SendenseError):
                    async for _ in mover.events():
                        pass
        async with qemu_nbd(hub, "job-2-2000", second):
            await copy(order(hub, short_tmp, source, "job-2-2000"))
        assert await as_raw(second) == image
