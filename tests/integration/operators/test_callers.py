# SPDX-License-Identifier: Apache-2.0
"""A call is refused when the role is too low, and whoever answers it knows who called."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from sendense.agent.v1 import agent_service_pb2_grpc as agent
from sendense.agent.v1 import backup_pb2
from sendense.common.v1.reason_pb2 import Reason
from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import job_service_pb2 as pb
from sendense.hub.v1 import job_service_pb2_grpc as hub
from sendense_common import rpc
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration


class Jobs(hub.JobServiceServicer):
    """Writes down who called; a second stream waits in between."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.closed = asyncio.Event()

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """Of itself, and of a task that it starts."""
        self.seen += [rpc.actor(), await asyncio.create_task(_actor())]
        return pb.ListJobsResponse()

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        """Never to be reached by a viewer."""
        self.seen.append(rpc.actor())
        return pb.CancelJobResponse()

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        """Before and after each answer."""
        try:
            for _ in range(3):
                self.seen.append(rpc.actor())
                yield pb.WatchJobResponse()
                await asyncio.sleep(0.01)
        finally:
            self.closed.set()


class Agent(agent.AgentServiceServicer):
    """A conversation."""

    async def RunBackup(self, requests: Any, context: Any) -> AsyncIterator[backup_pb2.RunBackupResponse]:
        """One answer for each message; its trace context is who called."""
        async for _ in requests:
            yield backup_pb2.RunBackupResponse(traceparent=rpc.actor())


async def _actor() -> str:
    return rpc.actor()


def made() -> Jobs:
    return Jobs()  # type: ignore[abstract]  # the rest is not called


def served(jobs: Jobs) -> list[rpc.Service]:
    talker = Agent()  # type: ignore[abstract]
    return [
        rpc.Service("sendense.hub.v1.JobService", hub.add_JobServiceServicer_to_server, jobs),
        rpc.Service("sendense.agent.v1.AgentService", agent.add_AgentServiceServicer_to_server, talker),
    ]


async def by_name(context: Any) -> rpc.Caller:
    """The caller says who it is: enough for a test."""
    named = dict(context.invocation_metadata())
    return rpc.Caller(f"token:{named['name']}", Role.Value(f"ROLE_{named['role'].upper()}"))


async def test_whoever_answers_a_call_knows_who_made_it(short_tmp: Path):
    """One call, one stream, and many of both at once: none sees another's caller."""
    jobs = made()
    async with rpc.serve(short_tmp / "s", served(jobs), identify=by_name), rpc.connect(short_tmp / "s") as ch:
        stub = hub.JobServiceStub(ch)

        async def both(name: str) -> None:
            metadata = (("name", name), ("role", "viewer"))
            await stub.ListJobs(pb.ListJobsRequest(), metadata=metadata)
            async for _ in stub.WatchJob(pb.WatchJobRequest(), metadata=metadata):
                pass

        await asyncio.gather(*(both(f"n{number}") for number in range(20)))
    assert sorted(jobs.seen) == sorted(f"token:n{number}" for number in range(20) for _ in range(5))
    assert rpc.actor() == "local"


async def test_a_conversation_knows_its_caller_throughout(short_tmp: Path):
    async with (
        rpc.serve(short_tmp / "s", served(made())),
        rpc.connect(short_tmp / "s") as channel,
    ):
        requests = [backup_pb2.RunBackupRequest()] * 3
        answers = [answer async for answer in agent.AgentServiceStub(channel).RunBackup(iter(requests))]
    assert [answer.traceparent for answer in answers] == [f"local:{os.getuid()}"] * 3


async def test_a_stream_that_its_caller_leaves_is_closed_at_once(short_tmp: Path):
    jobs = made()
    async with rpc.serve(short_tmp / "s", served(jobs)), rpc.connect(short_tmp / "s") as channel:
        call = hub.JobServiceStub(channel).WatchJob(pb.WatchJobRequest())
        await call.read()
        call.cancel()
        await asyncio.wait_for(jobs.closed.wait(), 30)


@pytest.mark.parametrize(
    ("role", "permitted"), [("viewer", False), ("operator", True), ("admin", True), ("unspecified", False)]
)
async def test_a_role_permits_what_it_includes(short_tmp: Path, role: str, permitted: bool):
    jobs = made()
    async with rpc.serve(short_tmp / "s", served(jobs), identify=by_name), rpc.connect(short_tmp / "s") as ch:
        call = hub.JobServiceStub(ch).CancelJob(
            pb.CancelJobRequest(), metadata=(("name", "ada"), ("role", role))
        )
        if permitted:
            await call
        else:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            error = SendenseError.from_rpc(failed.value)
            assert failed.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert error.reason == Reason.REASON_NOT_PERMITTED
            assert error.message == (
                f"token:ada has the role {role}; sendense.hub.v1.JobService/CancelJob needs operator"
            )
            assert error.metadata["needed"] == "operator"
            assert "role operator" in error.remedy
    assert jobs.seen == (["token:ada"] if permitted else [])


async def test_no_operator_makes_the_calls_of_agents_and_gateways(short_tmp: Path):
    """A conversation is refused as a single call is, to an admin too."""
    async with (
        rpc.serve(short_tmp / "s", served(made()), identify=by_name),
        rpc.connect(short_tmp / "s") as channel,
    ):
        call = agent.AgentServiceStub(channel).RunBackup(
            iter([backup_pb2.RunBackupRequest()]), metadata=(("name", "ada"), ("role", "admin"))
        )
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
    assert SendenseError.from_rpc(failed.value).reason == Reason.REASON_NOT_PERMITTED
