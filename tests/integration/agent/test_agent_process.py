# SPDX-License-Identifier: Apache-2.0
"""The whole agent as a process, reached through its tunnel as a hub does it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator

import pytest
from tests.integration.agent.kit import WITHIN_S, open_stream
from tests.integration.agent.site_kit import MIB, Site, processes_of
from tests.integration.tunnel.kit import reverse_socket, until

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process, rpc

pytestmark = pytest.mark.integration


@contextlib.asynccontextmanager
async def agent_process(site: Site) -> AsyncIterator[tuple[asyncio.subprocess.Process, Site]]:
    """`sendense-agent run`, and the site as its hub reaches it."""
    site.hub.authorization.targets["credentials"] = site.credentials.paths.agents_socket
    command = [sys.executable, "-m", "sendense_agent.main", "run"]
    child = await asyncio.create_subprocess_exec(
        *process.dying_with_parent(command), f"--state={site.paths.state}", f"--run={site.paths.run}"
    )
    published = reverse_socket(site.hub, site.name)
    try:
        await rpc.wait_healthy(published, timeout_s=30, what="the agent")
        async with rpc.connect(published) as channel:
            yield child, dataclasses.replace(site, stub=AgentServiceStub(channel))
    finally:
        await process.stop(child, grace_s=WITHIN_S)


async def test_a_stopped_agent_cleans_up_and_the_hub_hears_why_through_the_tunnel(site: Site):
    vm = await site.lab.add_vm(f"vm-{uuid.uuid4().hex[:8]}", [MIB])
    async with agent_process(site) as (agent, there):
        about = await there.stub.GetAgent(agent_service_pb2.GetAgentRequest(), timeout=WITHIN_S)
        assert about.agent_id == site.name
        assert about.tools["nbdkit"].startswith("nbdkit ")
        backup = await there.begin(vm)
        await backup.until_plan()
        assert len(await site.snapshots(vm)) == 1
        agent.send_signal(signal.SIGTERM)
        failed = await backup.failed()
        assert await asyncio.wait_for(agent.wait(), WITHIN_S) == 0
    assert failed.failure.reason == Reason.REASON_SERVICE_STOPPING
    assert not failed.snapshot_left
    await site.nothing_left(vm)
    assert not site.paths.grpc_socket.exists()


@pytest.mark.parametrize("during", ["snapshot", "plan"])
async def test_ff27_workers_of_a_killed_agent_remove_their_snapshots_by_themselves(site: Site, during: str):
    vm = await site.lab.add_vm(f"vm-{uuid.uuid4().hex[:8]}", [MIB])
    async with agent_process(site) as (agent, there):
        if during == "snapshot":
            await site.lab.command("delay_task", method="CreateSnapshot_Task", seconds=0.7)
        backup = await there.begin(vm)
        await backup.until_phase(pb.AGENT_PHASE_SNAPSHOT)
        if during == "plan":
            await backup.until_plan()
        await site.called("CreateSnapshot_Task")
        os.kill(agent.pid, signal.SIGKILL)
        await agent.wait()
    await until(lambda: not processes_of(site.paths.run), "the worker has ended", WITHIN_S)
    await site.nothing_left(vm)
    assert (await site.counters())["call CreateSnapshot_Task"] == 1
    async with agent_process(site) as (_, again):
        backup.start.after_seq = backup.heard[-1].seq
        stream = await open_stream(again.stub, backup.start)
        (event,) = await stream.rest()
    assert event.failed.failure.reason == Reason.REASON_JOB_LOST
    assert event.failed.snapshot_left  # the new agent cannot know
