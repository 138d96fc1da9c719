# SPDX-License-Identifier: Apache-2.0
"""Where spans go."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import sendense_common
from sendense_common.telemetry._context import NotesAttempt

log = logging.getLogger(__name__)

_EXPORT_EVERY_MS = 500
_EXPORT_TIMEOUT_S = 5.0
# The hub takes 1,000 spans and 1 MiB with one call.
_MOST_SPANS = 512
_MOST_BYTES = 512 * 1024


class SocketSpanExporter(SpanExporter):
    """Sends spans as OTLP over gRPC to a unix socket (the hub's, or the tunnel's end at a site).

    OpenTelemetry's own exporter takes only URLs of hosts. Spans that cannot be sent are dropped: a trace
    is never worth a backup.
    """

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._stub = TraceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends one batch, by halves if it is large: spans of defects carry tracebacks."""
        request = encode_spans(spans)
        if len(spans) > 1 and (len(spans) > _MOST_SPANS or request.ByteSize() > _MOST_BYTES):
            half = len(spans) // 2
            sent = {self.export(spans[:half]), self.export(spans[half:])}
            return (
                SpanExportResult.SUCCESS if sent == {SpanExportResult.SUCCESS} else SpanExportResult.FAILURE
            )
        try:
            self._stub.Export(request, timeout=_EXPORT_TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code() if isinstance(error, grpc.Call) else error
            log.debug("%d spans were not delivered: %s", len(spans), code)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the channel."""
        self._channel.close()


def configure(service: str, *, spans_socket: Path | None, exporter: SpanExporter | None = None) -> None:
    """Starts tracing in this process; call once, first thing.

    Args:
        service: `service.name` of all its spans, as "sendense-agent".
        spans_socket: where the hub takes spans; None where it is this process itself.
        exporter: one more place for spans (the hub's own store, tests).
    """
    # A stream whose caller hung up is closed in another context than it ran in. Nothing is lost, and
    # OpenTelemetry writes a traceback, as often as anybody likes to hang up.
    logging.getLogger("opentelemetry.context").setLevel(logging.CRITICAL)
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service, SERVICE_VERSION: sendense_common.__version__})
    )
    provider.add_span_processor(NotesAttempt())
    exporters: list[SpanExporter] = []
    if spans_socket is not None:
        exporters.append(SocketSpanExporter(spans_socket))
    if exporter is not None:
        exporters.append(exporter)
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        exporters.append(OTLPSpanExporter())
    for each in exporters:
        provider.add_span_processor(BatchSpanProcessor(each, schedule_delay_millis=_EXPORT_EVERY_MS))
    trace.set_tracer_provider(provider)


def flush(timeout_s: float = _EXPORT_TIMEOUT_S) -> None:
    """Sends what is pending; blocks up to `timeout_s`."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.force_flush(int(timeout_s * 1000))


def shutdown() -> None:
    """Sends what is pending and stops; blocks for a few seconds at the most."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.shutdown()
