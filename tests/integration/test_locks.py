# SPDX-License-Identifier: Apache-2.0
"""One process for each state directory, one after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.service import only_one, only_one_after_another

pytestmark = pytest.mark.integration


async def test_who_comes_while_the_one_before_ends_waits_for_it(tmp_path: Path):
    lock, entered = tmp_path / "lock", asyncio.Event()

    async def next_one() -> None:
        async with only_one_after_another(lock, "hub", within_s=60):
            entered.set()

    with only_one(lock, "hub"):
        waiting = asyncio.create_task(next_one())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await entered.wait()
    await waiting
    assert entered.is_set()


async def test_who_has_waited_long_enough_is_refused(tmp_path: Path):
    with only_one(tmp_path / "lock", "hub"), pytest.raises(SendenseError, match="another hub uses") as caught:
        async with only_one_after_another(tmp_path / "lock", "hub", within_s=0.1):
            pass
    assert caught.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
