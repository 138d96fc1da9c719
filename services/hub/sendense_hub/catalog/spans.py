# SPDX-License-Identifier: Apache-2.0
"""Spans of recent traces, so that a job's trace can be drawn without any other system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.hub.v1 import job_service_pb2 as pb
from sendense_hub.catalog.schema import jobs, spans

_PER_TRACE = 5_000
# 100 MB as spans usually are, 600 MB at the most.
_IN_TOTAL = 200_000
# Made at once when there are too many: to look for what goes takes longer than to store.
_ROOM = 20_000


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


def store(
    connection: sa.Connection, batch: Sequence[StoredSpan], site: str, *, most: int = _IN_TOTAL
) -> None:
    """Keeps them, and no more than `most` in all.

    A span that comes again replaces itself, and a trace that is too long loses the rest. When there are too
    many, traces that belong to no job go first: an agent that sends what nobody asked for pushes out no job's
    trace. Of these, the site goes first that has most, and of its traces those that came first.

    Args:
        connection: a transaction.
        batch: to keep.
        site: that sent it; empty: a process of the installation.
        most: spans in all.
    """
    by_trace: dict[str, dict[str, StoredSpan]] = {}
    for span in batch:
        by_trace.setdefault(span.trace_id, {})[span.span_id] = span
    in_batch = spans.c.trace_id.in_(by_trace)
    arrivals = _each(connection, sa.func.min(spans.c.arrival), in_batch)
    same = [span.trace_id + span.span_id for span in batch if span.trace_id in arrivals]
    if same:
        connection.execute(spans.delete().where(in_batch, (spans.c.trace_id + spans.c.span_id).in_(same)))
    kept = _each(connection, sa.func.count(), in_batch)
    newest = connection.scalar(sa.select(sa.func.max(spans.c.arrival))) or 0
    rows = []
    for number, (trace_id, mine) in enumerate(by_trace.items(), newest + 1):
        arrival = arrivals.get(trace_id) or number
        room = max(0, _PER_TRACE - kept.get(trace_id, 0))
        rows += [{**asdict(span), "arrival": arrival, "site": site} for span in list(mine.values())[:room]]
    if rows:
        connection.execute(spans.insert(), rows)
    total = connection.scalar(sa.select(sa.func.count()).select_from(spans)) or 0
    if total > most:
        _discard(connection, total - most + min(_ROOM, most // 10))


def _each(
    connection: sa.Connection, value: sa.ColumnElement[int], where: sa.ColumnElement[bool]
) -> dict[str, int]:
    """Something of each trace."""
    query = sa.select(spans.c.trace_id, value).where(where).group_by(spans.c.trace_id)
    return {row[0]: row[1] for row in connection.execute(query)}


def _discard(connection: sa.Connection, count: int) -> None:
    """Whole traces with at least so many spans together."""
    first = sa.func.coalesce(sa.func.min(spans.c.arrival), 0)
    of_a_job = spans.c.trace_id.in_(sa.select(jobs.c.trace_id))
    traces = (
        sa.select(
            spans.c.trace_id,
            sa.func.count().label("count"),
            sa.func.max(sa.case((of_a_job, 1), else_=0)).label("of_a_job"),
            sa.func.max(spans.c.site).label("site"),  # one of a job has spans of the hub as well
            first.label("first"),
        )
        .group_by(spans.c.trace_id)
        .subquery()
    )
    # How many its site would have with it and all that came later: those above the most of others go first.
    pile = sa.func.sum(traces.c.count).over(
        partition_by=(traces.c.of_a_job, traces.c.site),
        order_by=(traces.c.first.desc(), traces.c.trace_id.desc()),
    )
    piled = sa.select(traces, pile.label("pile")).subquery()
    order = (piled.c.of_a_job, piled.c.pile.desc(), piled.c.first, piled.c.trace_id)
    before = sa.func.sum(piled.c.count).over(order_by=order) - piled.c.count
    ranked = sa.select(piled.c.trace_id, before.label("before")).subquery()
    going = sa.select(ranked.c.trace_id).where(ranked.c.before < count)
    connection.execute(spans.delete().where(spans.c.trace_id.in_(going)))


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
