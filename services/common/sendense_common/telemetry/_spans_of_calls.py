# SPDX-License-Identifier: Apache-2.0
"""Spans of calls without what was raised in them.

OpenTelemetry's interceptor formats a traceback for each call that raises, twice, and a refused call raises
what makes gRPC abort it: who sends such calls would decide what this process does. Why a call was refused is
in its span as `error.type` (see `refused`); the traceback of a defect is recorded where it is found.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.util.types import Attributes


class WithoutTracebacks(trace.TracerProvider):
    """Gives tracers of the process's own provider; their spans record no exception."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """Of the process's own provider, also when that is set later."""
        name, version = instrumenting_module_name, instrumenting_library_version
        return _Tracer(trace.get_tracer(name, version, schema_url=schema_url, attributes=attributes))


class _Tracer(trace.Tracer):
    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_span(self, *arguments: Any, **options: Any) -> trace.Span:
        return self._tracer.start_span(*arguments, **options)

    @contextlib.contextmanager
    def start_as_current_span(self, *arguments: Any, **options: Any) -> Iterator[Any]:  # type: ignore[override]
        options["record_exception"] = False
        with self._tracer.start_as_current_span(*arguments, **options) as span:
            yield _Span(span)


class _Span:
    """For the interceptor alone: whoever asks for the current span gets the real one."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def __getattr__(self, name: str) -> Any:
        return getattr(self._span, name)

    def record_exception(self, *_: Any, **__: Any) -> None:
        """Does nothing."""
