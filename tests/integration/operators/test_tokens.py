# SPDX-License-Identifier: Apache-2.0
"""Tokens: what they let in, when they end, and what is kept of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.operators.kit import WITHIN_S, Jobs, Room, refusal, room

from sendense.common.v1.reason_pb2 import Reason
from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import job_service_pb2 as pb
from sendense.hub.v1 import operator_service_pb2 as operator_pb
from sendense.hub.v1.operator_service_pb2_grpc import OperatorServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.rpc._patience import PatienceInterceptor
from sendense_hub.catalog import operators
from sendense_hub.rpc.admission import Admission

pytestmark = pytest.mark.integration


@pytest.fixture
async def hub(short_tmp: Path) -> AsyncIterator[Room]:
    async with room(short_tmp) as made:
        yield made


async def test_a_token_lets_in_as_far_as_its_role_goes(hub: Room):
    token = await hub.token("vera")
    async with hub.jobs(token) as jobs:
        await jobs.ListJobs(pb.ListJobsRequest())
        refused = await refusal(jobs.CancelJob(pb.CancelJobRequest(job_id="x")))
    assert refused.reason == Reason.REASON_NOT_PERMITTED
    assert refused.metadata["actor"] == "token:vera"
    async with hub.jobs(await hub.token("otto", "operator")) as jobs:
        await jobs.CancelJob(pb.CancelJobRequest(job_id="x"))


@pytest.mark.parametrize("token", ["", "sendense_wrong", "x" * 5000])
async def test_nobody_comes_in_without_a_valid_token(hub: Room, token: str):
    await hub.token("vera")
    async with hub.jobs(token) as jobs:
        refused = await refusal(jobs.ListJobs(pb.ListJobsRequest()))
        assert refused.reason == Reason.REASON_NOT_AUTHENTICATED
        assert refused.remedy
        stream = await refusal(jobs.WatchJob(pb.WatchJobRequest()).read())
        assert stream.reason == Reason.REASON_NOT_AUTHENTICATED


async def test_two_tokens_at_once_are_none(hub: Room):
    token = await hub.token("vera")
    async with hub.jobs(token) as jobs:
        more = (("authorization", f"Bearer {token}"),)
        refused = await refusal(jobs.ListJobs(pb.ListJobsRequest(), metadata=more))
    assert refused.reason == Reason.REASON_NOT_AUTHENTICATED


async def test_health_answers_whoever_asks(hub: Room):
    async with rpc.connect_remote(rpc.Remote("127.0.0.1", hub.port, tls=False)) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest()
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_revoked_token_ends_at_once_and_its_streams_soon(hub: Room):
    async with hub.jobs(await hub.token("vera")) as jobs, hub.jobs(await hub.token("otto")) as others:
        stream, other = jobs.WatchJob(pb.WatchJobRequest()), others.WatchJob(pb.WatchJobRequest())
        await stream.read()
        await other.read()
        await hub.revoke("vera")
        assert (await refusal(jobs.ListJobs(pb.ListJobsRequest()))).reason == Reason.REASON_NOT_AUTHENTICATED
        async with asyncio.timeout(WITHIN_S):
            ended = await refusal(stream.read())
        assert ended.reason == Reason.REASON_NOT_AUTHENTICATED
        assert not other.done(), "only its own"


async def test_an_expired_token_is_refused_and_its_streams_end(hub: Room):
    token = await hub.token("vera", lifetime=Duration(seconds=3))
    async with hub.jobs(token) as jobs:
        stream = jobs.WatchJob(pb.WatchJobRequest())
        await stream.read()
        async with asyncio.timeout(WITHIN_S):
            ended = await refusal(stream.read())
        refused = await refusal(jobs.ListJobs(pb.ListJobsRequest()))
    assert "token vera has expired" in ended.message
    assert "token vera has expired" in refused.message
    assert refused.reason == Reason.REASON_NOT_AUTHENTICATED


async def test_of_a_token_only_its_hash_is_kept(hub: Room, short_tmp: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    token = await hub.token("vera")
    async with hub.jobs(token) as jobs:
        await jobs.ListJobs(pb.ListJobsRequest())
        await refusal(jobs.CancelJob(pb.CancelJobRequest(job_id="x")))
    assert len(token) >= len("sendense_") + 43
    for file in short_tmp.iterdir():
        assert token.encode() not in file.read_bytes(), file
    assert token not in caplog.text
    (row,) = await hub.catalog.run(operators.listed)
    assert row.token_sha256 is not None
    assert len(row.token_sha256) == 32


async def test_when_a_token_was_last_used_is_noted(hub: Room):
    token = await hub.token("vera")
    async with hub.jobs(token) as jobs:
        await jobs.ListJobs(pb.ListJobsRequest())
    deadline = time.monotonic() + WITHIN_S
    while not (await hub.catalog.run(operators.listed))[0].last_used_time_us:
        assert time.monotonic() < deadline
    later = Admission(hub.catalog)
    await later.load()
    assert later.all()[0].last_used_time_us == hub.admission.all()[0].last_used_time_us


async def test_an_admin_elsewhere_makes_tokens_and_a_viewer_does_not(hub: Room):
    request = operator_pb.CreateTokenRequest(name="new", role=Role.ROLE_ADMIN)
    for name, role, permitted in (("vera", "viewer", False), ("anna", "admin", True)):
        remote = rpc.Remote("127.0.0.1", hub.port, tls=False, token=await hub.token(name, role))
        async with rpc.connect_remote(remote) as channel:
            stub = OperatorServiceStub(channel)
            who = await stub.GetCaller(operator_pb.GetCallerRequest())
            assert (who.actor, who.role) == (f"token:{name}", Role.Value(f"ROLE_{role.upper()}"))
            if permitted:
                made = await stub.CreateToken(request)
                listed = await stub.ListOperators(operator_pb.ListOperatorsRequest())
                assert made.token not in str(listed)
                assert {each.name for each in listed.operators} == {"vera", "anna", "new"}
            else:
                assert (await refusal(stub.CreateToken(request))).reason == Reason.REASON_NOT_PERMITTED


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"name": "", "role": Role.ROLE_VIEWER}, "name"),
        ({"name": "a b", "role": Role.ROLE_VIEWER}, "name"),
        ({"name": "x" * 64, "role": Role.ROLE_VIEWER}, "name"),
        ({"name": "ada"}, "role"),
        ({"name": "ada", "role": Role.ROLE_SERVICE}, "role"),
        ({"name": "ada", "role": 99}, "role"),
        ({"name": "ada", "role": Role.ROLE_VIEWER, "lifetime": Duration()}, "lifetime"),
        ({"name": "ada", "role": Role.ROLE_VIEWER, "lifetime": Duration(seconds=10**10)}, "lifetime"),
    ],
)
async def test_what_no_token_can_be_is_refused(hub: Room, request_: dict[str, object], field: str):
    with pytest.raises(SendenseError) as failed:
        await hub.operators.CreateToken(operator_pb.CreateTokenRequest(**request_), None)  # type: ignore[arg-type]
    assert failed.value.metadata["field"] == field


async def test_a_name_is_taken_until_it_is_revoked(hub: Room):
    await hub.token("vera")
    with pytest.raises(SendenseError) as failed:
        await hub.token("vera", "admin")
    assert failed.value.reason == Reason.REASON_OPERATOR_EXISTS
    await hub.revoke("vera")
    with pytest.raises(SendenseError) as failed:
        await hub.revoke("vera")
    assert failed.value.reason == Reason.REASON_OPERATOR_NOT_FOUND
    await hub.token("vera", "admin")


async def test_many_wrong_tokens_and_silent_clients_do_not_hold_up_a_right_one(hub: Room):
    """A hundred of each; it still answers in much less than they take."""
    silent = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(100)]
    async with hub.jobs("sendense_wrong") as wrong, hub.jobs(await hub.token("vera")) as jobs:
        calls = [wrong.ListJobs(pb.ListJobsRequest()) for _ in range(60)]
        started = time.monotonic()
        for _ in range(20):
            await jobs.ListJobs(pb.ListJobsRequest(), timeout=WITHIN_S)
        took_s = time.monotonic() - started
        refused = await asyncio.gather(*calls, return_exceptions=True)
    for each in silent:
        each.close()
    assert all(isinstance(each, grpc.aio.AioRpcError) for each in refused)
    assert took_s < 10


async def test_more_connections_than_there_may_be_are_closed(hub: Room):
    """One that waits for nothing gets a frame of HTTP/2; one too many gets the end."""
    loop = asyncio.get_running_loop()
    opened: list[socket.socket] = []
    first: list[bytes] = []
    try:
        for _ in range(300):
            made = socket.socket()
            made.setblocking(False)
            await loop.sock_connect(made, ("127.0.0.1", hub.port))
            opened.append(made)
        async with asyncio.timeout(WITHIN_S):
            first = await asyncio.gather(*(_first_byte(loop, each) for each in opened))
    finally:
        for each in opened:
            each.close()
    assert 0 < sum(byte == b"" for byte in first) <= 60


async def _first_byte(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(sock, 1)
    except ConnectionResetError:
        return b""


async def test_calls_without_a_request_do_not_stay_and_do_not_keep_others_out(hub: Room):
    """More than there may be at once, of nobody: each is refused before its request is waited for."""
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for _ in range(5):
            remote = rpc.Remote("127.0.0.1", hub.port, tls=False)
            channel = await stack.enter_async_context(rpc.connect_remote(remote))
            start: Any = channel.stream_unary("/sendense.hub.v1.JobService/ListJobs")
            calls += [start(_never()) for _ in range(60)]
        jobs = await stack.enter_async_context(hub.jobs(await hub.token("vera")))
        await jobs.ListJobs(pb.ListJobsRequest(), timeout=WITHIN_S, wait_for_ready=True)
        async with asyncio.timeout(WITHIN_S):
            refused = await asyncio.gather(*calls, return_exceptions=True)
    assert {each.code() for each in refused} == {grpc.StatusCode.UNAUTHENTICATED}  # type: ignore[union-attr]


async def test_a_request_of_more_than_a_mebibyte_is_refused(hub: Room):
    async with hub.jobs(await hub.token("large")) as jobs:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await jobs.ListJobs(pb.ListJobsRequest(page_token="x" * (1 << 20)), timeout=WITHIN_S)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_that_does_not_come_is_not_waited_for():
    """Nor is one of a caller who was let in, or of a call that is open to all."""
    patient = PatienceInterceptor(0.05)
    served: Any = grpc.unary_unary_rpc_method_handler(Jobs.ListJobs)

    async def handler(_: object) -> object:
        return served

    wrapped = await patient.intercept_service(handler, None)  # type: ignore[arg-type]
    assert wrapped is not None
    assert wrapped.request_streaming
    with pytest.raises(SendenseError, match="no request came"):
        await wrapped.stream_unary(_never(), None)  # type: ignore[misc, arg-type]


async def _never() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""
