# SPDX-License-Identifier: Apache-2.0
"""Readiness is what the health service says, asked as often as it takes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import rpc
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration


async def test_ff06_a_service_that_is_slow_to_start_is_waited_for(short_tmp: Path) -> None:
    """Not even a socket that nobody answers on is a failure before the time is up."""
    path = short_tmp / "s.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    waiting = asyncio.create_task(rpc.wait_healthy(path, timeout_s=60, what="the slow service"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    async with rpc.serve(path, []):
        await waiting


async def test_ff06_a_service_that_never_starts_is_named(short_tmp: Path) -> None:
    with pytest.raises(SendenseError, match="the dead service") as failed:
        await rpc.wait_healthy(short_tmp / "none.sock", timeout_s=0.2, what="the dead service")
    assert failed.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
