# SPDX-License-Identifier: Apache-2.0
"""Who is not trusted uses up no server: neither with calls that have no end, nor with large ones."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    TraceServiceStub,
    add_TraceServiceServicer_to_server,
)
from tests.integration.raw_http2 import raw_client

from sendense_common import rpc

pytestmark = pytest.mark.integration

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
WATCH = "/grpc.health.v1.Health/Watch"
WITHIN_S = 20.0
PATIENT = replace(rpc.AGENTS, request_within_s=600.0, call_within_s=600.0, connection_for_s=600.0)


class Intake(TraceServiceServicer):
    """Counts the calls that come to it."""

    count = 0
    hangs = False

    async def Export(self, request: Any, context: Any) -> pb.ExportTraceServiceResponse:
        self.count += 1
        if self.hangs:
            await asyncio.Event().wait()
        return pb.ExportTraceServiceResponse(
            partial_success=pb.ExportTracePartialSuccess(error_message="x" * 1000)
        )


def served(intake: Intake) -> list[rpc.Service]:
    return [rpc.Service("TraceService", add_TraceServiceServicer_to_server, intake)]


async def honest(socket: Path) -> None:
    """A call that works."""
    async with rpc.connect(socket) as channel:
        await TraceServiceStub(channel).Export(pb.ExportTraceServiceRequest(), timeout=WITHIN_S)  # type: ignore[no-untyped-call]


async def until_honest(socket: Path) -> None:
    """A call that works after some that are refused because there are too many."""
    async with asyncio.timeout(WITHIN_S):
        while await refused(socket):  # noqa: ASYNC110 - the server says nothing
            await asyncio.sleep(0.05)


async def refused(socket: Path) -> bool:
    try:
        await honest(socket)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return True
    return False


async def test_one_connection_does_not_use_up_the_calls_that_there_may_be(short_tmp: Path):
    bounds = replace(PATIENT, calls=16, calls_per_connection=2)
    socket, intake = short_tmp / "s", Intake()
    async with rpc.serve(socket, served(intake), stop_grace_s=0, bounds=bounds), raw_client(socket) as raw:
        raw.begin()
        for _ in range(100):
            raw.call(EXPORT)
        await raw.sent()
        await asyncio.wait_for(raw.refused(98), WITHIN_S)
        await honest(socket)


async def test_calls_without_a_request_end_soon(short_tmp: Path):
    bounds = replace(PATIENT, calls=2, request_within_s=0.5)
    socket, intake = short_tmp / "s", Intake()
    async with rpc.serve(socket, served(intake), stop_grace_s=0, bounds=bounds), raw_client(socket) as raw:
        raw.begin()
        raw.call(EXPORT)
        raw.call(EXPORT)
        await raw.sent()
        await until_honest(socket)


async def test_a_call_that_hangs_is_ended_and_leaves_its_place(short_tmp: Path):
    bounds = replace(PATIENT, calls=1, call_within_s=0.5)
    socket, intake = short_tmp / "s", Intake()
    intake.hangs = True
    async with rpc.serve(socket, served(intake), stop_grace_s=0, bounds=bounds):
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await honest(socket)
        assert ended.value.details() == "the call was not over within 0.5 s"
        intake.hangs = False
        await until_honest(socket)


async def test_a_stream_does_not_last(short_tmp: Path):
    bounds = replace(PATIENT, calls=2, call_within_s=1.0)
    socket, intake = short_tmp / "s", Intake()
    async with rpc.serve(socket, served(intake), stop_grace_s=0, bounds=bounds), raw_client(socket) as raw:
        raw.begin()
        raw.call(WATCH, b"")
        raw.call(WATCH, b"")
        await raw.sent()
        await until_honest(socket)


async def test_answers_that_are_not_taken_are_thrown_away(short_tmp: Path):
    bounds = replace(PATIENT, calls=2, call_within_s=1.0, connection_for_s=1.0)
    socket, intake = short_tmp / "s", Intake()
    async with rpc.serve(socket, served(intake), stop_grace_s=0, bounds=bounds), raw_client(socket) as raw:
        raw.begin(window_bytes=0)
        raw.call(EXPORT, b"")
        raw.call(EXPORT, b"")
        await raw.sent()
        await until_honest(socket)


async def test_a_message_that_is_too_large_is_refused(short_tmp: Path):
    socket, intake = short_tmp / "s", Intake()
    async with rpc.serve(socket, served(intake), stop_grace_s=0, bounds=rpc.AGENTS):
        async with rpc.connect(socket) as channel:
            request = pb.ExportTraceServiceRequest()
            request.resource_spans.add(schema_url="x" * (1 << 20))
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await TraceServiceStub(channel).Export(request, timeout=WITHIN_S)  # type: ignore[no-untyped-call]
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert intake.count == 0
        await honest(socket)


async def test_health_is_told_to_agents_and_not_to_strangers(short_tmp: Path):
    for bounds, bare in ((rpc.AGENTS, False), (rpc.STRANGERS, True)):
        socket = short_tmp / f"s{bare}"
        async with rpc.serve(socket, [], stop_grace_s=0, bounds=bounds), rpc.connect(socket) as channel:
            ask: Any = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            )
            with contextlib.nullcontext() if not bare else pytest.raises(grpc.aio.AioRpcError):
                await ask(health_pb2.HealthCheckRequest(), timeout=WITHIN_S)
