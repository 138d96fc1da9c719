# SPDX-License-Identifier: Apache-2.0
"""Each span of an attempt says which attempt it is of, also in the processes that it calls."""

from __future__ import annotations

import pytest
from opentelemetry import propagate
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sendense_common import telemetry
from sendense_common.telemetry._context import NotesAttempt

pytestmark = pytest.mark.unit


def attributes_of_spans_within(headers: dict[str, str], attempt: int) -> list[dict[str, object]]:
    """Of a span in an attempt and one below it, when a call came with these headers."""
    kept, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(NotesAttempt())
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test")
    token = attach(propagate.extract(headers))
    try:
        with telemetry.in_attempt(attempt), tracer.start_as_current_span("outer"):
            tracer.start_span("inner").end()
    finally:
        detach(token)
    return [dict(span.attributes or {}) for span in kept.get_finished_spans()]


def test_spans_of_an_attempt_say_so() -> None:
    assert attributes_of_spans_within({}, 3) == [{"attempt": 3}, {"attempt": 3}]
    assert telemetry.attempt() == 0


def test_the_attempt_travels_with_every_call_and_to_programs() -> None:
    with telemetry.in_attempt(7):
        headers: dict[str, str] = {}
        propagate.inject(headers)
        assert telemetry.attempt() == 7
    assert attributes_of_spans_within(headers, 0) == [{"attempt": 7}, {"attempt": 7}]


@pytest.mark.parametrize("said", ["", "-1", "x", "1" * 100, "%C2%B2"])
def test_what_is_no_attempt_is_left_out(said: str) -> None:
    headers = {"baggage": f"sendense.attempt={said}"}
    assert attributes_of_spans_within(headers, 0) == [{}, {}]
