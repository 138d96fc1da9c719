# SPDX-License-Identifier: Apache-2.0
"""Spans of a job whose parent was never told, as its process was killed: each is put below its attempt.

Which attempt that is, the spans say themselves (attribute `attempt`); nothing is concluded from times. The
span of an attempt itself has the attribute `job` as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import job_service_pb2 as pb

_RUNS = frozenset({job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLING})


def attempt_of(span: pb.Span) -> int:
    """0 when it says none."""
    said = span.attributes.get("attempt", "")
    return int(said) if said.isascii() and said.isdigit() else 0


def is_attempt(span: pb.Span) -> bool:
    """Whether it is an attempt itself, or the line that stands for one."""
    return bool(attempt_of(span)) and "job" in span.attributes


def stands_for_others(span: pb.Span) -> bool:
    """Whether it is a line of this module: it has no time of its own."""
    return not span.service


def with_lines(spans: Sequence[pb.Span], job: job_pb2.Job) -> list[pb.Span]:
    """The spans, and a line above those of each attempt whose own parent is not there.

    Args:
        spans: of one trace.
        job: the job that it is of.
    """
    known = {span.span_id for span in spans}
    attempts = {attempt_of(span): span for span in spans if is_attempt(span)}
    placed, orphans = [], defaultdict(list)
    for span in spans:
        number = attempt_of(span)
        if span.parent_span_id in known or not span.parent_span_id or not number or is_attempt(span):
            placed.append(span)
        else:
            orphans[number].append(span)
    # All attempts are below the request that made the job.
    request = next((span.parent_span_id for span in attempts.values()), "")
    for number, children in orphans.items():
        line = pb.Span(span_id=f"attempt {number}", start_time=min(children, key=_start_ns).start_time)
        if number in attempts:
            line.parent_span_id = attempts[number].span_id
            line.name = "(their own parent was lost with its process)"
        else:
            line.parent_span_id = request
            line.name = f"attempt {number} ({_why(number, job)})"
            line.attributes.update(attempt=str(number), job=job.job_id)
        placed.append(line)
        for span in children:
            moved = pb.Span()
            moved.CopyFrom(span)
            moved.parent_span_id = line.span_id
            placed.append(moved)
    return placed


def in_order(spans: Sequence[pb.Span]) -> list[pb.Span]:
    """By start time; attempts among themselves by number, whatever the clocks of two hosts say."""
    by_time = sorted(spans, key=_start_ns)
    attempts = iter(sorted((span for span in by_time if is_attempt(span)), key=attempt_of))
    return [next(attempts) if is_attempt(span) else span for span in by_time]


def _why(number: int, job: job_pb2.Job) -> str:
    """Why the span of an attempt is not there."""
    if number == job.attempt and job.state in _RUNS:
        return "it runs: its own span comes when it ends"
    if number < job.attempt or job.state == job_pb2.JOB_STATE_WAITING:
        return "interrupted: its own span was lost with its process"
    return "its own span was lost with its process, or has not come yet"


def _start_ns(span: pb.Span) -> int:
    return span.start_time.ToNanoseconds()
