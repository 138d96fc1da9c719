# SPDX-License-Identifier: Apache-2.0
"""The source `datastore` behind something that drops the header Range, or closes what is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
import pytest_asyncio
from tests.contract.kit import CAPACITY, DATA, Stand, a_datastore
from tests.integration.vsphere.kit import fails

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import datastore
from sendense_common.errors import SendenseError
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def stand(lab: LabClient, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    monkeypatch.setattr(datastore, "_RETRIES", 1)
    monkeypatch.setattr(datastore, "_RETRY_AFTER_S", 1)
    async with a_datastore(short_tmp, lab, monkeypatch) as made:
        made.run_dir = short_tmp / "n"
        yield made


async def test_a_whole_file_in_place_of_a_part_is_asked_for_again_and_never_taken_for_it(
    stand: Stand, lab: LabClient
) -> None:
    async with stand.open() as source:
        reader = await stand.reader(source)
        assert await reader.read(0, 4096) == DATA[:4096]
        await lab.inject_fault("GET /folder", "whole")
        assert await reader.read(65536, 4096) == DATA[65536:][:4096]


async def test_rule_10_whole_files_that_go_on_fail_the_copy_with_that_cause(
    stand: Stand, lab: LabClient
) -> None:
    with fails(Reason.REASON_SOURCE_IGNORES_RANGES, "HTTP 200 for bytes=65536-") as caught:
        async with stand.open() as source:
            reader = await stand.reader(source)
            assert await reader.read(0, 4096) == DATA[:4096]
            await lab.inject_fault("GET /folder", "whole", times=1000)
            for offset in (65536, 0):  # at 0 the bytes would be right, but not by right
                with pytest.raises(nbd.Error):
                    await reader.read(offset, 4096)
            with pytest.raises(nbd.Error):
                await reader.read(65536, 4096)
            raise SendenseError(Reason.REASON_SOURCE_READ_FAILED, "the copy's words")
    assert "proxy" in caught.value.remedy


async def test_an_answer_that_breaks_off_is_asked_for_again(stand: Stand, lab: LabClient) -> None:
    async with stand.open() as source:
        reader = await stand.reader(source)
        await lab.inject_fault("GET /folder", "drop")
        assert await reader.read() == DATA


async def test_the_gate_shows_nothing_but_its_file_and_needs_no_secret(stand: Stand) -> None:
    async with stand.open() as source:
        reader, writer = await asyncio.open_unix_connection(str(source.socket.with_suffix(".way")))
        writer.write(b"HEAD /folder/another HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert f"Content-Length: {CAPACITY}\r\n".encode() in head
        writer.write(b"GET /folder/another HTTP/1.1\r\nHost: x\r\nRange: bytes=0-511\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 206 ")
        assert await reader.readexactly(512) == DATA[:512]
        writer.close()
