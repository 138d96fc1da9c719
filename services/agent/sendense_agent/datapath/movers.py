# SPDX-License-Identifier: Apache-2.0
"""Starting movers and listening to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import framing
from sendense_agent.datapath.order import CopyOrder
from sendense_common import process
from sendense_common.errors import SendenseError

_STOP_GRACE_S = 5.0

MoverEvent = pb.DiskProgress | pb.Checkpoint | pb.AuditMismatch | pb.DiskDone


class Mover:
    """A running mover; made by `start_mover`."""

    def __init__(self, order: CopyOrder, child: asyncio.subprocess.Process) -> None:
        self._order = order
        self._child = child
        self.finished = False
        """Whether it has said that its disk is done; it ends by itself then."""
        self.gone = asyncio.Event()
        """Set by who listens to it, when there is nothing more to hear."""
        self._stopped = False

    async def events(self) -> AsyncGenerator[MoverEvent, None]:
        """Progress (at least once, at most ten times a second), the others, and DiskDone as the last one.

        Of one that was stopped, a checkpoint may be the last one.

        Raises:
            SendenseError: SOURCE_READ_FAILED, TARGET_WRITE_FAILED, TUNNEL_LOST, TUNNEL_REFUSED,
                DISK_MISMATCH, or COPY_PROCESS_DIED.
        """
        assert self._child.stdout is not None
        while (event := await framing.read(self._child.stdout, pb.RunBackupResponse)) is not None:
            match event.WhichOneof("event"):
                case "progress":
                    yield event.progress.disks[0]
                case "checkpoint":
                    yield event.checkpoint
                case "audit_mismatch":
                    yield event.audit_mismatch
                case "disk_done":
                    self.finished = True
                    yield event.disk_done
                    return
                case "failed":
                    raise SendenseError.from_failure(event.failed.failure)
        code = await self._child.wait()
        if self._stopped and code == 0:
            return
        raise SendenseError(
            Reason.REASON_COPY_PROCESS_DIED,
            f"the process that copied {self._order.label} ended with code {code}",
            remedy="The agent's log has its last words. Start the backup again.",
            disk=self._order.disk_key,
        )

    async def limit(self, bytes_per_second: int) -> None:
        """Reads no faster from now on; 0 is no limit."""
        await self._tell({"limit": bytes_per_second})

    async def stop(self) -> None:
        """It reads no more, writes and flushes what it has read, gives a last checkpoint, and ends."""
        self._stopped = True
        await self._tell({"stop": True})

    async def _tell(self, command: dict[str, int]) -> None:
        assert self._child.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._child.stdin.write(json.dumps(command).encode() + b"\n")
            await self._child.stdin.drain()


@contextlib.asynccontextmanager
async def start_mover(order: CopyOrder) -> AsyncIterator[Mover]:
    """Copies one disk in a process of its own, which is gone when the block has ended."""
    extents = [each.to_bytes() for each in (order.read, order.zero, order.kept)]
    descriptors = [_in_memory(each) for each in (*extents, order.audit)]
    try:
        child = await asyncio.create_subprocess_exec(
            *process.dying_with_parent(
                [sys.executable, "-m", "sendense_agent.datapath.mover", *map(str, descriptors)],
                parent_signal="KILL",  # one that is stopped (SIGSTOP) would not hear another signal
            ),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    mover = Mover(order, child)
    try:
        assert child.stdin is not None
        child.stdin.write(order.to_json())
        yield mover
        if mover.finished:
            # It still closes its connection and sends its spans; nothing waits for those but the trace.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_GRACE_S):
                    await child.wait()
    finally:
        try:
            await process.stop(child, grace_s=_STOP_GRACE_S)
        finally:
            order.local_socket.unlink(missing_ok=True)
            order.digests_socket.unlink(missing_ok=True)


def _in_memory(data: bytes) -> int:
    """A descriptor from which `data` can be read."""
    descriptor = os.memfd_create("extents")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
