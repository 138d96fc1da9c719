# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_agent.datapath.mover READ_FD ZERO_FD KEPT_FD AUDIT_FD`: copies one disk.

Input: one line of JSON, the order; then lines as {"limit": bytes per second} or {"stop": true}, which ends it
with a last checkpoint; the end of input ends the process at once.
Output: framed RunBackupResponse messages with progress, checkpoint, audit_mismatch, and at last disk_done or
failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
import threading

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import framing
from sendense_agent.datapath.mover.engine import CopyEngine
from sendense_agent.datapath.order import CopyOrder
from sendense_agent.domain.extents import Extents
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.service import configure_logging
from sendense_common.tunnel import Forward, Tunnel, dial, tune_malloc

_SERVICE = "sendense-agent"


def main() -> int:
    """Copies one disk; the exit code is 1 after a failure, which was told."""
    configure_logging()
    tune_malloc()
    read, zero, kept = (Extents.from_bytes(_read_all(int(number))) for number in sys.argv[1:4])
    audit = _read_all(int(sys.argv[4]))
    # Without a buffer: a thread that waits in a buffered file when the process ends makes it abort.
    orders = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - until the process ends
    order = CopyOrder.from_json(orders.readline(), read, zero, kept, audit)
    telemetry.configure(_SERVICE, spans_socket=order.telemetry_socket)
    failed = False
    try:
        with (
            telemetry.continue_from(order.traceparent),
            telemetry.in_attempt(order.attempt),
            telemetry.span(
                f"copy {order.label}", disk=order.disk_key, read=read.total_bytes, zero=zero.total_bytes
            ) as span,
        ):
            engine_facts = asyncio.run(_copy(order, orders))
            for name, value in engine_facts.items():
                span.set_attribute(name, value)
    except SendenseError as error:
        failed = True
        _tell(pb.RunBackupResponse(failed=pb.BackupFailed(failure=error.to_failure())))
    telemetry.shutdown()
    return int(failed)


async def _copy(order: CopyOrder, orders: io.FileIO) -> dict[str, int]:
    async with dial(order.tunnel) as tunnel, contextlib.AsyncExitStack() as digests:
        if name := order.digests_export_name:
            await digests.enter_async_context(tunnel.forward(f"nbd/{name}", order.digests_socket))
        async with tunnel.forward(f"nbd/{order.export_name}", order.local_socket) as forward:
            engine = CopyEngine(order, _tell, tunnel.wire_bytes_sent)
            threading.Thread(target=_take_commands, args=(engine, orders), daemon=True).start()
            try:
                counted = await asyncio.to_thread(engine.run)
            except SendenseError as error:
                raise _cause(error, tunnel, forward) from error
        return {
            "wire_bytes": tunnel.wire_bytes_sent(),
            "flush_ms": round(engine.flush_s * 1000),
            "waited_for_flush_ms": round(engine.waited_for_flush_s * 1000),
            "audited_bytes": counted.audited_bytes,
            "audit_mismatches": counted.audit_mismatches,
        }


def _cause(error: SendenseError, tunnel: Tunnel, forward: Forward) -> SendenseError:
    """A target that went away may be the tunnel's doing."""
    if error.reason != Reason.REASON_TARGET_WRITE_FAILED:
        return error
    if forward.refusal is not None:
        return forward.refusal
    if tunnel.closed:
        return SendenseError(
            Reason.REASON_TUNNEL_LOST,
            f"{error.message} (the connection to the hub was lost)",
            remedy="Check the network path to the hub.",
            disk=error.metadata.get("disk"),
        )
    return error


def _take_commands(engine: CopyEngine, orders: io.FileIO) -> None:
    for line in orders:
        command = json.loads(line)
        if "stop" in command:
            engine.stop()
        else:
            engine.limit(int(command["limit"]))
    os._exit(1)  # whoever ordered the copy is gone


_telling = threading.Lock()


def _tell(event: pb.RunBackupResponse) -> None:
    with _telling, contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(framing.frame(event))
        sys.stdout.buffer.flush()


def _read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


if __name__ == "__main__":
    sys.exit(main())
