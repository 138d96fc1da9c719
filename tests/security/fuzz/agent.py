# SPDX-License-Identifier: Apache-2.0
"""An agent's gRPC service in a process of its own; its workers say at once that the vCenter is not there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from google.protobuf.any_pb2 import Any as AnyMessage

from sendense.agent.v1.agent_service_pb2_grpc import add_AgentServiceServicer_to_server
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.jobs import Jobs
from sendense_agent.control.reconciliation import Reconciliation
from sendense_agent.datapath import framing
from sendense_agent.domain.limits import Limits
from sendense_agent.rpc.agent_service import AgentService
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths, private_dir
from sendense_common.service import run_service


async def serve(directory: Path, stopping: asyncio.Event) -> None:
    paths = AgentPaths(private_dir(directory / "s"), private_dir(directory / "r"))
    wrapped = AnyMessage()
    wrapped.Pack(SendenseError(Reason.REASON_VCENTER_UNREACHABLE, "nobody there").to_failure())
    answer = directory / "answer"
    answer.write_bytes(framing.frame(wrapped))

    def command(traceparent: str) -> list[str]:
        return ["/bin/cat", str(answer), "-"]  # reads what it is told, as workers do

    service = rpc.Service(
        "sendense.agent.v1.AgentService",
        add_AgentServiceServicer_to_server,
        AgentService("site-a", command, Jobs(command, Limits()), Reconciliation(paths)),
    )
    async with rpc.serve(paths.grpc_socket, [service], stop_grace_s=0.2):
        await stopping.wait()


if __name__ == "__main__":
    sys.exit(run_service("fuzzed-agent", lambda stopping: serve(Path(sys.argv[1]), stopping)))
