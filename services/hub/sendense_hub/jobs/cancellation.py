# SPDX-License-Identifier: Apache-2.0
"""A CancelledError that comes from below, as from a closed gRPC channel, is an error and no cancellation.

The engine takes a job whose task raises CancelledError for one that somebody will go on with: it would be
left without a runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError


async def uncancelled(work: Coroutine[Any, Any, None]) -> None:
    """Does `work`; raises CancelledError only when our own task is cancelled, and ends `work` then.

    Raises:
        SendenseError: TUNNEL_LOST when `work` was cancelled by something else; or what it raised.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    finally:
        task.cancel()
    result(task)


def result(task: asyncio.Task[None]) -> None:
    """What a finished task raised; TUNNEL_LOST for a CancelledError."""
    if task.cancelled():
        raise SendenseError(
            Reason.REASON_TUNNEL_LOST, "a call to the agent was cancelled below the job", retryable=True
        )
    task.result()
