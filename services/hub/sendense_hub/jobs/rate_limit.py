# SPDX-License-Identifier: Apache-2.0
"""How fast a job may read is told to the agent: when an attempt begins, and whenever an operator sets it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from sendense.agent.v1 import backup_pb2 as agent
from sendense_hub.clients.backup_stream import BackupStream
from sendense_hub.jobs.board import LiveJob


@contextlib.asynccontextmanager
async def told(live: LiveJob, stream: BackupStream) -> AsyncIterator[None]:
    """The agent of an attempt knows the limit of its job for as long as the block runs."""
    telling = asyncio.create_task(_tell(live, stream))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell(live: LiveJob, stream: BackupStream) -> None:
    known = 0  # a worker begins without a limit
    while True:
        while (limit := live.job.bytes_per_second) != known:
            await stream.say(agent.RunBackupRequest(limit=agent.LimitRate(bytes_per_second=limit)))
            known = limit
        await live.wait_news()
