# SPDX-License-Identifier: Apache-2.0
"""Spans, and how the thread of a trace is handed over where no interceptor reaches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import Span, SpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sendense_common.errors import SendenseError

_W3C = TraceContextTextMapPropagator()
_ERROR_TYPE = "error.type"
"""OpenTelemetry's own name for a stable class of errors."""
_TRACER = trace.get_tracer("sendense")

_ATTEMPT = "sendense.attempt"
_ATTEMPT_DIGITS = 9

AttributeValue = str | bool | int | float


@contextlib.contextmanager
def span(name: str, **attributes: AttributeValue) -> Iterator[trace.Span]:
    """A span below the current one. An exception that leaves the block is its error.

    Of a `SendenseError` that is its reason and message; of everything else, a defect, the traceback as well.
    """
    with _TRACER.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except SendenseError as error:
            refused(error)
            current.set_status(trace.StatusCode.ERROR, str(error))
            raise
        except Exception as error:
            defect(error)
            current.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")
            raise


def refused(error: SendenseError) -> None:
    """The current span has the reason of `error`; no traceback is made."""
    trace.get_current_span().set_attribute(_ERROR_TYPE, error.reason_name)


def defect(error: Exception) -> None:
    """The current span has `error` with its traceback."""
    trace.get_current_span().record_exception(error)


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


@contextlib.contextmanager
def in_attempt(attempt: int) -> Iterator[None]:
    """Spans of the block, and of the calls that it makes, belong to this attempt of a job.

    The span that an attempt is drawn below is lost when its process is killed: each span of it says itself
    where it belongs. 0 changes nothing.
    """
    if not attempt:
        yield
        return
    token = context.attach(baggage.set_baggage(_ATTEMPT, str(attempt)))
    try:
        yield
    finally:
        context.detach(token)


def attempt() -> int:
    """The attempt of a job that this is in; 0 when it is in none."""
    return _attempt_in(None)


def _attempt_in(where: context.Context | None) -> int:
    """What comes with a call may be anything."""
    said = str(baggage.get_baggage(_ATTEMPT, where) or "")
    return int(said) if said.isascii() and said.isdigit() and len(said) <= _ATTEMPT_DIGITS else 0


class NotesAttempt(SpanProcessor):
    """Gives each span that belongs to an attempt of a job its number, as the attribute `attempt`."""

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        """When a span begins."""
        if number := _attempt_in(parent_context):
            span.set_attribute("attempt", number)


def trace_id() -> str:
    """The current trace's ID, 32 hex digits; empty when there is none."""
    found = trace.get_current_span().get_span_context()
    return format(found.trace_id, "032x") if found.is_valid else ""
