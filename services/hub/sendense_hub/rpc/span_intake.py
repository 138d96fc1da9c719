# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's own TraceService: takes spans from all processes, also from agents through the tunnel."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from sendense_common import site_name
from sendense_hub.catalog import Catalog, spans
from sendense_hub.catalog.spans import StoredSpan
from sendense_hub.domain.cutting import cut

_Context = grpc.aio.ServicerContext[Any, Any]
# OpenTelemetry's exporters send 512 at once.
_MOST_PER_CALL = 1_000
_TEXT_BYTES = 500
_SERVICE_BYTES = 100
_ATTRIBUTES = 40
_ATTRIBUTES_BYTES = 2_000
_NO_PARENT = (b"", bytes(8))


class SpanIntake(TraceServiceServicer):
    """Keeps spans, of one call after the other: what else the catalog has to do comes in between."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._turn = asyncio.Lock()

    async def Export(
        self, request: pb.ExportTraceServiceRequest, context: _Context
    ) -> pb.ExportTraceServiceResponse:
        """See OTLP."""
        batch = list(itertools.islice(_stored(request), _MOST_PER_CALL))
        if batch:
            site = site_name.of_peer(context.peer())
            async with self._turn:
                await self._catalog.run(lambda connection: spans.store(connection, batch, site))
        return pb.ExportTraceServiceResponse()


def _stored(request: pb.ExportTraceServiceRequest) -> Iterator[StoredSpan]:
    for resource in request.resource_spans:
        service = dict(_texts(resource.resource.attributes)).get("service.name", "")
        service = cut(service, _SERVICE_BYTES)
        for scope in resource.scope_spans:
            for span in scope.spans:
                if _is_one(span):
                    yield _one(span, service)


def _is_one(span: trace_pb2.Span) -> bool:
    ids = (len(span.trace_id), len(span.span_id), len(span.parent_span_id))
    return ids in {(16, 8, 0), (16, 8, 8)}


def _one(span: trace_pb2.Span, service: str) -> StoredSpan:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return StoredSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id="" if span.parent_span_id in _NO_PARENT else span.parent_span_id.hex(),
        name=cut(span.name, _TEXT_BYTES),
        service=service,
        start_ns=min(span.start_time_unix_nano, 2**63 - 1),
        duration_ns=min(max(0, span.end_time_unix_nano - span.start_time_unix_nano), 2**63 - 1),
        error=cut(span.status.message or "failed", _TEXT_BYTES) if failed else "",
        attributes=dict(_texts(span.attributes)),
    )


def _texts(attributes: Sequence[KeyValue]) -> Iterator[tuple[str, str]]:
    """The first ones, as long as there is room."""
    room_bytes = _ATTRIBUTES_BYTES
    for attribute in attributes[:_ATTRIBUTES]:
        kind = attribute.value.WhichOneof("value")
        if not kind:
            continue
        key = cut(attribute.key, _TEXT_BYTES)
        value = cut(str(getattr(attribute.value, kind)), _TEXT_BYTES)
        room_bytes -= len(key.encode()) + len(value.encode())
        if room_bytes < 0:
            return
        yield key, value
