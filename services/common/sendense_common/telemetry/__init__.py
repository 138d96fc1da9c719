# SPDX-License-Identifier: Apache-2.0
"""Traces: one per backup, through all services and processes.

W3C trace context travels in the metadata of every call (interceptors) and, because a long stream outlives any
span, inside each of its messages (`traceparent()` at one end, `continue_from()` at the other). Spans go
to the hub, which keeps those of its jobs, and to wherever the standard OTEL_EXPORTER_OTLP_* variables say.
"""

from sendense_common.telemetry._context import (
    attempt,
    continue_from,
    defect,
    in_attempt,
    refused,
    span,
    trace_id,
    traceparent,
)
from sendense_common.telemetry._interceptors import client_interceptors, server_interceptors
from sendense_common.telemetry._setup import configure, flush, shutdown

__all__ = [
    "attempt",
    "client_interceptors",
    "configure",
    "continue_from",
    "defect",
    "flush",
    "in_attempt",
    "refused",
    "server_interceptors",
    "shutdown",
    "span",
    "trace_id",
    "traceparent",
]
