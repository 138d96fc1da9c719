# SPDX-License-Identifier: Apache-2.0
"""`python -m sendense_agent.worker`: one operation in a process of its own, started by the agent.

The first message on standard input says what to do. The password, once redeemed, is in this process's memory
only, and goes with it. A failure is said as a Failure message (a backup says it as its own event).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from sendense.agent.v1 import agent_service_pb2, backup_pb2
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.worker import short_operations
from sendense_agent.worker.backup import Backup
from sendense_agent.worker.channel import Channel, unpack
from sendense_agent.worker.site import Site
from sendense_common import process, telemetry
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths
from sendense_common.service import configure_logging

log = logging.getLogger("sendense_agent.worker")

_SHORT: tuple[tuple[type[Message], Callable[[Site, Channel, Any], Coroutine[Any, Any, None]]], ...] = (
    (agent_service_pb2.ListVirtualMachinesRequest, short_operations.list_virtual_machines),
    (agent_service_pb2.TestVcenterRequest, short_operations.test_vcenter),
    (agent_service_pb2.CheckVirtualMachineRequest, short_operations.check_virtual_machine),
    (agent_service_pb2.FindSnapshotsRequest, short_operations.find_snapshots),
    (agent_service_pb2.CleanUpSnapshotsRequest, short_operations.clean_up_snapshots),
    (agent_service_pb2.ResetChangeTrackingRequest, short_operations.reset_change_tracking),
)


async def _serve(paths: AgentPaths, traceparent: str) -> None:
    channel = await Channel.of_worker()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    first = await channel.receive()
    if first is None:
        return
    try:
        with telemetry.continue_from(traceparent):
            await _run(Site.load(paths, channel), channel, first, stopping)
    except SendenseError as error:
        await channel.send(error.to_failure())
    except Exception:
        log.exception("defect in a worker")
        defect = SendenseError(
            Reason.REASON_INTERNAL,
            "the agent's worker failed unexpectedly",
            remedy="The log of the agent has the details; please report them.",
        )
        await channel.send(defect.to_failure())


async def _run(site: Site, channel: Channel, first: AnyMessage, stopping: asyncio.Event) -> None:
    request = unpack(first, backup_pb2.RunBackupRequest)
    if request is not None:
        with (
            telemetry.continue_from(request.traceparent),
            telemetry.in_attempt(request.start.attempt),
            telemetry.span(f"agent: backup of {request.start.vm_name}"),
        ):
            await Backup(site, channel, request.start).run(stopping)
        return
    for kind, operation in _SHORT:
        short = unpack(first, kind)
        if short is not None:
            await _until_stopped(operation(site, channel, short), stopping)
            return
    raise SendenseError(Reason.REASON_INVALID_REQUEST, f"unknown operation {first.type_url}")


async def _until_stopped(work: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
    task = asyncio.create_task(work)
    stop = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise SendenseError(Reason.REASON_SERVICE_STOPPING, "the agent was stopped")
        await task
    finally:
        for each in (task, stop):
            each.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


def main() -> int:
    """Runs one operation; the exit code is 0 if the worker itself worked."""
    parser = argparse.ArgumentParser(prog="python -m sendense_agent.worker", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, metavar="DIR")
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument("--traceparent", default="")
    options = parser.parse_args()
    configure_logging()
    process.forbid_core_dumps()
    paths = AgentPaths(options.state, options.run)
    telemetry.configure("sendense-agent", spans_socket=paths.telemetry_socket)
    asyncio.run(_serve(paths, options.traceparent))
    telemetry.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
