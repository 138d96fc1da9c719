# SPDX-License-Identifier: Apache-2.0
"""Spans, and how the thread of a trace is handed over where no interceptor reaches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("sendense")

AttributeValue = str | bool | int | float


@contextlib.contextmanager
def span(name: str, **attributes: AttributeValue) -> Iterator[trace.Span]:
    """A span below the current one. An exception that leaves the block is recorded as its error."""
    with _TRACER.start_as_current_span(name, attributes=attributes) as current:
        yield current


def traceparent() -> str:
    """The current span as a W3C traceparent; empty when there is none."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent", "")


@contextlib.contextmanager
def continue_from(parent: str) -> Iterator[None]:
    """Makes spans of the block children of a W3C traceparent; an empty or malformed one changes nothing."""
    if not parent:
        yield
        return
    token = context.attach(_W3C.extract({"traceparent": parent}))
    try:
        yield
    finally:
        context.detach(token)


def trace_id() -> str:
    """The current trace's ID, 32 hex digits; empty when there is none."""
    found = trace.get_current_span().get_span_context()
    return format(found.trace_id, "032x") if found.is_valid else ""
