# SPDX-License-Identifier: Apache-2.0
"""Spans of recent traces, so that a job's trace can be drawn without any other system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.hub.v1 import job_service_pb2 as pb
from sendense_hub.catalog.schema import spans

_PER_TRACE = 5_000
# About 100 MB; the oldest go first.
_IN_TOTAL = 200_000


@dataclass(frozen=True)
class StoredSpan:
    """One row."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    service: str
    start_ns: int
    duration_ns: int
    error: str
    attributes: dict[str, str]


def store(connection: sa.Connection, batch: Sequence[StoredSpan]) -> None:
    """Keeps them; a span that comes again replaces itself, and a trace that is too long loses the rest."""
    for trace_id in {span.trace_id for span in batch}:
        mine = [span for span in batch if span.trace_id == trace_id]
        connection.execute(
            spans.delete().where(
                spans.c.trace_id == trace_id, spans.c.span_id.in_([span.span_id for span in mine])
            )
        )
        kept = connection.scalar(sa.select(sa.func.count()).where(spans.c.trace_id == trace_id)) or 0
        if room := mine[: max(0, _PER_TRACE - kept)]:
            connection.execute(spans.insert(), [asdict(span) for span in room])
    total = connection.scalar(sa.select(sa.func.count()).select_from(spans)) or 0
    if total > _IN_TOTAL:
        oldest = sa.select(spans.c.trace_id).order_by(spans.c.start_ns).limit(1).scalar_subquery()
        connection.execute(spans.delete().where(spans.c.trace_id == oldest))


def of_trace(connection: sa.Connection, trace_id: str) -> list[pb.Span]:
    """By start time."""
    found = []
    query = sa.select(spans).where(spans.c.trace_id == trace_id).order_by(spans.c.start_ns)
    for row in connection.execute(query):
        start, duration = Timestamp(), Duration()
        start.FromNanoseconds(row.start_ns)
        duration.FromNanoseconds(row.duration_ns)
        found.append(
            pb.Span(
                span_id=row.span_id,
                parent_span_id=row.parent_span_id,
                name=row.name,
                service=row.service,
                start_time=start,
                duration=duration,
                error=row.error,
                attributes=row.attributes,
            )
        )
    return found
