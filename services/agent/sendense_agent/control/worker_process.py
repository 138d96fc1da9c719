# SPDX-License-Identifier: Apache-2.0
"""Worker processes: started, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.worker.channel import Channel, unpack
from sendense_common import process, telemetry
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths

log = logging.getLogger(__name__)

# A backup's worker removes its snapshot first.
_STOP_GRACE_S = 120.0


class WorkerProcess:
    """A running worker."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._channel = Channel(child.stdout, child.stdin)

    async def send(self, message: Message) -> None:
        """Tells it something."""
        await self._channel.send(message)

    async def messages(self) -> AsyncGenerator[AnyMessage, None]:
        """What it says, to its end.

        Raises:
            SendenseError: what the worker failed with; COPY_PROCESS_DIED when it died of something else.
        """
        while (wrapped := await self._channel.receive()) is not None:
            failure = unpack(wrapped, Failure)
            if failure is not None:
                raise SendenseError.from_failure(failure)
            yield wrapped
        code = await self._child.wait()
        if code != 0:
            raise SendenseError(
                Reason.REASON_COPY_PROCESS_DIED,
                f"the agent's worker ended with code {code}",
                remedy="The agent's log has its last words.",
            )

    def terminate(self) -> None:
        """Asks it to clean up and end."""
        with contextlib.suppress(ProcessLookupError):
            self._child.terminate()


@contextlib.asynccontextmanager
async def start_worker(paths: AgentPaths, request: Message) -> AsyncIterator[WorkerProcess]:
    """A worker for one operation, whose first message it is; ended and waited for when the block ends."""
    child = await asyncio.create_subprocess_exec(
        *process.dying_with_parent([sys.executable, "-m", "sendense_agent.worker"]),
        f"--state={paths.state}",
        f"--run={paths.run}",
        f"--traceparent={telemetry.traceparent()}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=2**26,
    )
    try:
        worker = WorkerProcess(child)
        await worker.send(request)
        yield worker
    finally:
        await asyncio.shield(process.stop(child, grace_s=_STOP_GRACE_S))
