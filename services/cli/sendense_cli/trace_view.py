# SPDX-License-Identifier: Apache-2.0
"""A job's trace as a tree with times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import job_service_pb2 as pb
from sendense_cli import trace_attempts, words

PIPE_WIDTH = 120
"""Columns where nobody says how many there are: a trace is a drawing, not a table that is read by line."""
_BAR = 20
# Widths; what is left of the line is the span's.
_SERVICE, _TOOK, _GAP, _NARROWEST = len("credentials"), len("59m 59s"), 2, 12


def tree(spans: Sequence[pb.Span], columns: int, job: job_pb2.Job) -> Table:
    """Spans below their parents, each with its service, its time and where it lies in the whole.

    Args:
        spans: of one trace.
        columns: of the terminal.
        job: the job that it is of.
    """
    spans = trace_attempts.with_lines(spans, job)
    known = {span.span_id for span in spans}
    children: dict[str, list[pb.Span]] = defaultdict(list)
    for span in spans:
        parent = span.parent_span_id if span.parent_span_id in known else ""
        children[parent].append(span)
    first = min((_start(span) for span in spans), default=0.0)
    last = max((_start(span) + _length(span) for span in spans), default=1.0)
    made = Table(box=None, pad_edge=False, header_style="bold")
    fixed = _SERVICE + _TOOK + _BAR + 3 * _GAP
    made.add_column("SPAN", no_wrap=True, overflow="ellipsis", max_width=max(_NARROWEST, columns - fixed))
    made.add_column("SERVICE", no_wrap=True, width=_SERVICE)
    made.add_column("TOOK", justify="right", no_wrap=True, width=_TOOK)
    made.add_column("", no_wrap=True, width=_BAR)
    _add(made, children, "", "", first, max(last - first, 1e-9))
    return made


def _add(
    made: Table, children: dict[str, list[pb.Span]], parent: str, indent: str, first: float, whole: float
) -> None:
    listed = trace_attempts.in_order(children[parent])
    for number, span in enumerate(listed):
        is_last = number == len(listed) - 1
        branch = "" if not indent and not parent else ("└─ " if is_last else "├─ ")
        name = Text(f"{indent}{branch}{_named(span)}", style="red" if span.error else "")
        if span.error:
            name.append(f"  {span.error}", style="red")
        if trace_attempts.stands_for_others(span):
            made.add_row(name, "", "", "")
        else:
            made.add_row(
                name,
                Text(span.service.removeprefix("sendense-"), style="cyan"),
                words.duration(_length(span)),
                Text(_bar(_start(span) - first, _length(span), whole), style="blue"),
            )
        below = indent + ("" if not branch else ("   " if is_last else "│  "))
        _add(made, children, span.span_id, below, first, whole)


def _named(span: pb.Span) -> str:
    """Calls by their method alone: services are in the next column."""
    return span.name.rpartition("/")[2] if span.name.startswith("/") else span.name


def _bar(offset: float, length: float, whole: float) -> str:
    start = min(int(offset / whole * _BAR), _BAR - 1)
    size = max(1, round(length / whole * _BAR))
    return " " * start + "█" * min(size, _BAR - start)


def _start(span: pb.Span) -> float:
    return span.start_time.ToNanoseconds() / 1e9


def _length(span: pb.Span) -> float:
    return span.duration.ToNanoseconds() / 1e9
