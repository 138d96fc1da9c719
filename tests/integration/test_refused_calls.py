# SPDX-License-Identifier: Apache-2.0
"""What a call leaves in its span: why it was refused, and no traceback of that."""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import redemption_service_pb2 as pb
from sendense.credentials.v1.redemption_service_pb2_grpc import (
    RedemptionServiceServicer,
    RedemptionServiceStub,
    add_RedemptionServiceServicer_to_server,
)
from sendense_common import rpc, telemetry
from sendense_common.errors import SendenseError
from sendense_common.telemetry import _context

pytestmark = pytest.mark.integration

METHOD = "/sendense.credentials.v1.RedemptionService/RedeemLease"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans that have ended; this process has no others."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(_context, "_TRACER", provider.get_tracer("sendense"))
    yield exporter
    provider.shutdown()


SERVER = trace.SpanKind.SERVER
WITHIN_S = 20.0


class Redemption(RedemptionServiceServicer):
    """Raises what it is told."""

    error: Exception | None = None

    async def RedeemLease(self, request: Any, context: Any) -> pb.RedeemLeaseResponse:
        if self.error is not None:
            raise self.error
        return pb.RedeemLeaseResponse()


@contextlib.asynccontextmanager
async def served(socket: Path, servicer: Redemption) -> AsyncIterator[RedemptionServiceStub]:
    name = "sendense.credentials.v1.RedemptionService"
    service = rpc.Service(name, add_RedemptionServiceServicer_to_server, servicer)
    async with rpc.serve(socket, [service], stop_grace_s=0), rpc.connect(socket) as channel:
        yield RedemptionServiceStub(channel)


async def server_span(ended: InMemorySpanExporter) -> ReadableSpan:
    """The one that there is, or is about to be: a caller has its answer a moment before the span ends."""
    async with asyncio.timeout(WITHIN_S):
        while not (found := [each for each in ended.get_finished_spans() if each.kind == SERVER]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    ended.clear()
    (span,) = found
    return span


async def call(stub: RedemptionServiceStub) -> grpc.StatusCode:
    try:
        await stub.RedeemLease(pb.RedeemLeaseRequest())
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_refused_call_leaves_its_code_and_reason_and_no_traceback_is_made(
    short_tmp: Path, ended: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
):
    servicer, formatted = Redemption(), []
    servicer.error = SendenseError(Reason.REASON_LEASE_USED, "lease x was used already")
    real = traceback.format_exception

    def counted(*arguments: Any, **options: Any) -> list[str]:
        formatted.append(arguments[0])
        return real(*arguments, **options)

    monkeypatch.setattr(traceback, "format_exception", counted)
    async with served(short_tmp / "s", servicer) as stub:
        for _ in range(3):
            assert await call(stub) == grpc.StatusCode.PERMISSION_DENIED
            span = await server_span(ended)
            assert span.name == METHOD
            assert span.attributes is not None
            assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.PERMISSION_DENIED.value[0]
            assert span.attributes["error.type"] == "LEASE_USED"
            assert not span.events
    assert [each for each in formatted if not isinstance(each, grpc.aio.AioRpcError)] == []


async def test_a_call_that_works_has_no_error(short_tmp: Path, ended: InMemorySpanExporter):
    async with served(short_tmp / "s", Redemption()) as stub:
        assert await call(stub) == grpc.StatusCode.OK
        span = await server_span(ended)
    assert span.status.status_code == trace.StatusCode.UNSET
    assert span.attributes is not None
    assert "error.type" not in span.attributes


async def test_a_defect_keeps_its_traceback(short_tmp: Path, ended: InMemorySpanExporter):
    servicer = Redemption()
    servicer.error = ZeroDivisionError("a defect")
    async with served(short_tmp / "s", servicer) as stub:
        assert await call(stub) == grpc.StatusCode.INTERNAL
        span = await server_span(ended)
    assert span.status.status_code == trace.StatusCode.ERROR
    (event,) = span.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "ZeroDivisionError"
    assert span.attributes is not None
    assert span.attributes["error.type"] == "INTERNAL"


def test_an_error_that_leaves_a_block_is_the_spans_without_a_traceback(ended: InMemorySpanExporter):
    with pytest.raises(SendenseError), telemetry.span("a block"):
        raise SendenseError(Reason.REASON_VM_BUSY, "a job of VM web runs")
    (span,) = ended.get_finished_spans()
    assert span.status.status_code == trace.StatusCode.ERROR
    assert span.status.description == "VM_BUSY: a job of VM web runs"
    assert span.attributes is not None
    assert span.attributes["error.type"] == "VM_BUSY"
    assert not span.events
