# SPDX-License-Identifier: Apache-2.0
"""Worker processes: started, listened to, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from sendense.agent.v1.worker_record_pb2 import WorkerRecord
from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.worker.channel import Channel, unpack
from sendense_common import audit_log, process, telemetry
from sendense_common.audit_log.record import OUTCOMES
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths

WorkerCommand = Callable[[str], Sequence[str]]
"""The command line of a worker that works for a span, given as a traceparent."""

# Backups are asked to end by a message, and waited for; this is for what does not listen any more.
_STOP_GRACE_S = 10.0


def worker_command(paths: AgentPaths) -> WorkerCommand:
    """Starts `sendense_agent.worker` for the agent at `paths`."""

    def command(traceparent: str) -> list[str]:
        return [
            *process.dying_with_parent([sys.executable, "-m", "sendense_agent.worker"]),
            f"--state={paths.state}",
            f"--run={paths.run}",
            f"--traceparent={traceparent}",
        ]

    return command


class WorkerProcess:
    """A running worker."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self._child = child
        self._channel = Channel(child.stdout, child.stdin)

    def kill(self) -> None:
        """Ends it at once, and what it started, also what is stopped and would not hear another signal."""
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)  # it leads a session of its own

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
            done = unpack(wrapped, WorkerRecord)
            if done is not None:
                await _record(done)
                continue
            yield wrapped
        code = await self._child.wait()
        if code != 0:
            raise SendenseError(
                Reason.REASON_COPY_PROCESS_DIED,
                f"the agent's worker ended with code {code}",
                remedy="The agent's log has its last words.",
            )


async def _record(done: WorkerRecord) -> None:
    outcome = next(each for each in OUTCOMES if each == done.outcome)
    who = audit_log.system_actor()
    await audit_log.record(done.act, subject=done.subject, outcome=outcome, actor=who, **done.facts)


@contextlib.asynccontextmanager
async def start_worker(command: WorkerCommand, request: Message) -> AsyncIterator[WorkerProcess]:
    """A worker for one operation, whose first message it is; ended and waited for when the block ends.

    Raises:
        SendenseError: INTERNAL when it cannot be started.
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *command(telemetry.traceparent()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal goes to the agent alone, which ends its workers in order.
            start_new_session=True,
            limit=2**26,
        )
    except OSError as error:
        raise SendenseError(Reason.REASON_INTERNAL, f"a worker could not be started: {error}") from error
    try:
        worker = WorkerProcess(child)
        await worker.send(request)
        yield worker
    finally:
        await asyncio.shield(process.stop(child, grace_s=_STOP_GRACE_S))
