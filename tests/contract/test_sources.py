# SPDX-License-Identifier: Apache-2.0
"""What `DiskSource` promises, asked of every source there is."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
import pytest_asyncio
from tests.contract.kit import (
    CAPACITY,
    DATA,
    STANDS,
    Stand,
    descriptors,
    processes,
    until,
)
from tests.integration.vsphere.kit import fails

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import SOURCES, datastore, vddk
from sendense_common.errors import SendenseError
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(params=sorted(SOURCES), loop_scope="module")
async def stand(
    request: pytest.FixtureRequest, lab: LabClient, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stand]:
    for place in (datastore, vddk):
        monkeypatch.setattr(place, "_RETRIES", 1)
        monkeypatch.setattr(place, "_RETRY_AFTER_S", 1)
    async with STANDS[request.param](short_tmp, lab, monkeypatch) as made:
        made.run_dir = short_tmp / "n"
        assert made.source.name == request.param
        yield made


async def test_size_and_bytes_are_the_disks_also_in_an_odd_tail(stand: Stand) -> None:
    async with stand.open() as source:
        reader = await stand.reader(source)
        assert reader.size == source.capacity_bytes == CAPACITY
        assert await reader.read() == DATA
        assert await reader.read(CAPACITY - 512, 512) == DATA[-512:]
        assert await reader.read(65536 - 512, 1024) == DATA[65536 - 512 :][:1024]
        assert not reader.writable


async def test_the_socket_admits_this_user_alone(stand: Stand) -> None:
    async with stand.open() as source:
        assert source.socket.parent.stat().st_mode & 0o777 == 0o700


async def test_two_connections_read_at_once(stand: Stand) -> None:
    async with stand.open() as source:
        readers = [await stand.reader(source) for _ in range(2)]
        pieces = [reader.read(start, 512) for start in range(0, CAPACITY, 65536) for reader in readers]
        found = await asyncio.gather(*(readers[number % 2].read(0, 65536) for number in range(8)), *pieces)
        assert found[:8] == [DATA[:65536]] * 8
        assert (
            found[8::2] == found[9::2] == [DATA[start : start + 512] for start in range(0, CAPACITY, 65536)]
        )


async def test_a_read_that_fails_is_an_error_and_the_next_is_told_too(stand: Stand) -> None:
    async with stand.open() as source:
        reader = await stand.reader(source)
        await stand.break_reads()
        for offset in (0, 65536):
            with pytest.raises(nbd.Error):
                await reader.read(offset, 4096)


async def test_a_failed_copy_tells_what_the_server_said(stand: Stand) -> None:
    with fails(Reason.REASON_SOURCE_READ_FAILED, r"the copy's words \(.+\)") as caught:
        async with stand.open() as source:
            reader = await stand.reader(source)
            await stand.break_reads()
            with pytest.raises(nbd.Error):
                await reader.read(0, 4096)
            raise SendenseError(Reason.REASON_SOURCE_READ_FAILED, "the copy's words", disk=2000)
    assert caught.value.metadata["disk"] == "2000"


async def test_when_its_server_is_gone_a_reader_hears_it_and_it_can_be_opened_again(stand: Stand) -> None:
    async with stand.open() as source:
        reader = await stand.reader(source)
        for pid in processes(stand.run_dir):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(nbd.Error):
            await reader.read()
    assert stand.left() == []
    async with stand.open() as source:
        assert await (await stand.reader(source)).read() == DATA


async def test_another_size_is_refused(stand: Stand) -> None:
    with fails(Reason.REASON_DISK_MISMATCH, f"the source has {CAPACITY} bytes, the disk has 512"):
        async with stand.open(capacity_bytes=512):
            pass
    assert stand.left() == []


@pytest.mark.parametrize("tool", ["nbdkit", "nbdinfo"])
async def test_a_tool_that_is_missing_is_named(
    stand: Stand, short_tmp: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    others = short_tmp / "others"
    others.mkdir()
    for each in {"setpriv", "nbdkit", "nbdinfo", "sh"} - {tool}:
        found = shutil.which(each)
        assert found is not None
        (others / each).symlink_to(found)
    monkeypatch.setenv("PATH", str(others))
    with fails(Reason.REASON_TOOL_MISSING, f"{tool} is not installed"):
        async with stand.open():
            pass
    assert stand.left() == []


async def test_closed_it_leaves_no_process_file_or_descriptor(stand: Stand) -> None:
    before = descriptors()
    async with stand.open() as source:
        assert stand.left() != []
        await stand.reader(source)
    assert stand.left() == []
    assert descriptors() == before


@pytest.mark.parametrize("after_ms", [0, 1, 5, 15, 40, 80, 160])
async def test_cancelled_while_it_opens_it_leaves_nothing(stand: Stand, after_ms: int) -> None:
    before = descriptors()
    opening = asyncio.create_task(_held_open(stand))
    await asyncio.sleep(after_ms / 1000)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until(lambda: stand.left() == [], "nothing is left")
    await until(lambda: descriptors() == before, "descriptors are closed")


async def _held_open(stand: Stand) -> None:
    async with stand.open():
        await asyncio.Event().wait()


async def test_a_second_one_of_the_same_label_is_refused_and_the_first_goes_on(stand: Stand) -> None:
    async with stand.open("same") as first, stand.open("other") as second:
        with fails(Reason.REASON_INTERNAL, "same: a disk is being read under that name already"):
            async with stand.open("same"):
                pass
        for source in (first, second):
            assert await (await stand.reader(source)).read() == DATA


async def test_what_one_that_was_killed_left_is_replaced(stand: Stand) -> None:
    stand.run_dir.mkdir(mode=0o700)
    for suffix in (".sock", ".lock", ".pem", ".way", ".vddk"):
        (stand.run_dir / f"disk{suffix}").touch()
    (stand.run_dir / "disk.tmp").mkdir()
    async with stand.open() as source:
        assert await (await stand.reader(source)).read() == DATA


async def test_ff22_no_command_line_environment_or_file_has_a_secret(stand: Stand) -> None:
    async with stand.open() as source:
        await (await stand.reader(source)).read()
        seen = [each.read_bytes() for each in stand.run_dir.rglob("*") if each.is_file()]
        pids = processes(stand.run_dir)
        assert pids
        for pid in pids:
            seen += [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
        seen.append(repr(stand.source).encode())
        for secret in stand.secrets():
            assert secret
            assert not [each for each in seen if secret in each]
