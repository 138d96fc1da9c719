# SPDX-License-Identifier: Apache-2.0
"""gRPC to an agent through the socket it publishes at the hub."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from tests.integration.tunnel.kit import Hub, reverse_socket

from sendense.agent.v1 import agent_service_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import (
    AgentServiceServicer,
    add_AgentServiceServicer_to_server,
)
from sendense_common import rpc
from sendense_common.tunnel import dial

pytestmark = pytest.mark.integration


class Agent(AgentServiceServicer):
    async def GetAgent(self, request, context):
        return pb.GetAgentResponse(agent_id="site-a", version="1")

    ListVirtualMachines = TestVcenter = RunBackup = CleanUpSnapshots = None  # type: ignore[assignment]
    CheckVirtualMachine = ResetChangeTracking = FindSnapshots = Reconcile = None  # type: ignore[assignment]


async def grpcurl(sock: Path, *words: str) -> str:
    child = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "grpcurl"),
        "-plaintext",
        "-unix",
        str(sock),
        *words,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    return out.decode()


async def test_ff07_grpcurl_reaches_an_agent_through_its_reverse_socket(hub: Hub, short_tmp: Path):
    service = rpc.Service("sendense.agent.v1.AgentService", add_AgentServiceServicer_to_server, Agent())
    async with rpc.serve(short_tmp / "g.sock", [service]), dial(hub.enrol()) as tunnel:
        await tunnel.publish(short_tmp / "g.sock")
        await rpc.wait_healthy(reverse_socket(hub), timeout_s=10, what="the agent")
        assert "sendense.agent.v1.AgentService" in await grpcurl(reverse_socket(hub), "list")
        assert "rpc GetAgent" in await grpcurl(
            reverse_socket(hub), "describe", "sendense.agent.v1.AgentService"
        )
        answer = json.loads(await grpcurl(reverse_socket(hub), "sendense.agent.v1.AgentService/GetAgent"))
        assert answer == {"agent_id": "site-a", "version": "1"}
