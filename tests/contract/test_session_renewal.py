# SPDX-License-Identifier: Apache-2.0
"""The source `datastore` when its session ends while it reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nbd
import pytest
import pytest_asyncio
from tests.contract.kit import DATA, PASSWORD, Stand, a_datastore
from tests.integration.vsphere.kit import fails

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import datastore
from sendense_common.errors import SendenseError
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def stand(lab: LabClient, short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    async with a_datastore(short_tmp, lab, monkeypatch) as made:
        made.run_dir = short_tmp / "n"
        yield made


async def test_rule_11_a_session_that_ends_is_renewed_and_reading_goes_on_with_one_login(
    stand: Stand, lab: LabClient
) -> None:
    async with stand.open() as source:
        readers = [await stand.reader(source) for _ in range(2)]
        for _ in range(2):
            logins = (await lab.counters())["logins"]
            await lab.command("expire_sessions")
            began = time.monotonic()
            assert await asyncio.gather(*(reader.read() for reader in readers)) == [DATA] * 2
            assert time.monotonic() - began < 15
            assert (await lab.counters())["logins"] == logins + 1


async def test_a_session_that_was_renewed_elsewhere_is_taken_over(stand: Stand, lab: LabClient) -> None:
    """As when another call has found out first."""
    async with stand.open() as source:
        reader = await stand.reader(source)
        await lab.command("expire_sessions")
        assert isinstance(stand.source, datastore.DatastoreSource)
        await stand.source.cookie()
        logins = (await lab.counters())["logins"]
        assert await reader.read() == DATA
        assert (await lab.counters())["logins"] == logins


async def test_rule_11_a_session_that_ends_before_the_start_is_renewed_too(
    stand: Stand, lab: LabClient
) -> None:
    await lab.command("expire_sessions")
    async with stand.open() as source:
        assert await (await stand.reader(source)).read() == DATA


async def test_rule_24_a_password_that_is_refused_at_the_renewal_is_tried_once_and_told(
    stand: Stand, lab: LabClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datastore, "_RETRIES", 2)
    monkeypatch.setattr(datastore, "_RETRY_AFTER_S", 1)
    refused = (await lab.counters()).get("logins refused", 0)
    try:
        with fails(Reason.REASON_VCENTER_LOGIN_FAILED) as caught:
            async with stand.open() as source:
                reader = await stand.reader(source)
                await lab.command("set_password", password="another")
                await lab.command("expire_sessions")
                with pytest.raises(nbd.Error):
                    await reader.read()
                raise SendenseError(Reason.REASON_SOURCE_READ_FAILED, "the copy's words")
    finally:
        await lab.command("set_password", password=PASSWORD)
    assert not caught.value.retryable
    assert (await lab.counters())["logins refused"] == refused + 1
