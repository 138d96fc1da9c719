# SPDX-License-Identifier: Apache-2.0
"""The process that reads views and compares them with ledgers: see `verifier`, which it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError

_GRACE_S = 3.0
Report = dict[str, Any]


class VerifierProcess:
    """Does one thing after the other; made by `verifier_process`."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def do(self, **task: object) -> AsyncGenerator[Report, None]:
        """Reports about one thing: the last one has `done`, or `problem`.

        Raises:
            SendenseError: EXPORT_FAILED when the qemu-nbd that serves it went away; INTERNAL when the process
                ends without having said which.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(ConnectionError):  # it has ended; its output says so too
            self._child.stdin.write(json.dumps(task).encode() + b"\n")
            await self._child.stdin.drain()
        async for line in self._child.stdout:
            report: Report = json.loads(line)
            if "broken" in report:
                raise SendenseError(
                    Reason.REASON_EXPORT_FAILED,
                    f"what was read went away meanwhile: {report['broken']}",
                    remedy="Nothing is known about what it holds. Try again; if this happens again, look for "
                    "what ends qemu-nbd at the hub: the log of the kernel tells when memory ran out.",
                    retryable=True,
                )
            yield report
            if "done" in report or "problem" in report:
                return
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"the verifier ended early, exit code {await self._child.wait()}",
            remedy="Nothing is known about what it read. The log of the hub has its words.",
        )


@contextlib.asynccontextmanager
async def verifier_process(scratch: Path) -> AsyncIterator[VerifierProcess]:
    """Runs one.

    Args:
        scratch: directory for as much as the ledgers of a chain hold.
    """
    child = await asyncio.create_subprocess_exec(
        *process.dying_with_parent([sys.executable, "-m", "sendense_hub.repository.verifier", str(scratch)]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield VerifierProcess(child)
    finally:
        await process.stop(child, grace_s=_GRACE_S)
