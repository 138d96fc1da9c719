# SPDX-License-Identifier: Apache-2.0
"""Clean-up that is done to its end, however often the task that needs it is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def undisturbed(work: Coroutine[Any, Any, None]) -> None:
    """Does `work` to its end; a cancellation of this task counts afterwards."""
    task = asyncio.ensure_future(work)
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as cancelled:
            interrupted = cancelled
    task.result()
    if interrupted is not None:
        raise interrupted
