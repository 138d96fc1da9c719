# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's own TraceService: takes spans from all processes, also from agents through the tunnel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceServicer
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from sendense_hub.catalog import Catalog, spans
from sendense_hub.catalog.spans import StoredSpan

_Context = grpc.aio.ServicerContext[Any, Any]
_MOST_PER_CALL = 2_000
_TEXT_CHARS = 500
_ATTRIBUTES = 40


class SpanIntake(TraceServiceServicer):
    """Keeps spans."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def Export(
        self, request: pb.ExportTraceServiceRequest, context: _Context
    ) -> pb.ExportTraceServiceResponse:
        """See OTLP."""
        batch = list(_stored(request))[:_MOST_PER_CALL]
        if batch:
            await self._catalog.run(lambda connection: spans.store(connection, batch))
        return pb.ExportTraceServiceResponse()


def _stored(request: pb.ExportTraceServiceRequest) -> Iterator[StoredSpan]:
    for resource in request.resource_spans:
        service = dict(_texts(resource.resource.attributes)).get("service.name", "")
        for scope in resource.scope_spans:
            for span in scope.spans:
                if len(span.trace_id) == 16 and len(span.span_id) == 8:
                    yield _one(span, service)


def _one(span: trace_pb2.Span, service: str) -> StoredSpan:
    failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    return StoredSpan(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name[:_TEXT_CHARS],
        service=service,
        start_ns=min(span.start_time_unix_nano, 2**63 - 1),
        duration_ns=min(max(0, span.end_time_unix_nano - span.start_time_unix_nano), 2**63 - 1),
        error=(span.status.message or "failed")[:_TEXT_CHARS] if failed else "",
        attributes=dict(_texts(span.attributes)),
    )


def _texts(attributes: Iterable[KeyValue]) -> Iterator[tuple[str, str]]:
    for attribute in list(attributes)[:_ATTRIBUTES]:
        kind = attribute.value.WhichOneof("value")
        if kind:
            yield attribute.key[:_TEXT_CHARS], str(getattr(attribute.value, kind))[:_TEXT_CHARS]
