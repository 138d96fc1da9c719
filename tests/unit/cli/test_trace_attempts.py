# SPDX-License-Identifier: Apache-2.0
"""Where the trace of a job has holes, what is below them is drawn below the attempt that it says it is of."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sendense.hub.v1 import job_pb2, job_service_pb2
from sendense_cli import trace_view

pytestmark = pytest.mark.unit


def span(span_id: str, parent: str, start_s: int, **attributes: str) -> job_service_pb2.Span:
    made = job_service_pb2.Span(
        name=span_id, span_id=span_id, parent_span_id=parent, service="sendense-hub", attributes=attributes
    )
    made.start_time.FromSeconds(start_s)
    made.duration.FromSeconds(1)
    return made


def drawn(
    *spans: job_service_pb2.Span,
    attempt: int,
    state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_SUCCEEDED,
) -> list[str]:
    output = io.StringIO()
    job = job_pb2.Job(job_id="j", attempt=attempt, state=state)
    Console(file=output, width=160, color_system=None).print(trace_view.tree(spans, 160, job))
    header, *lines = output.getvalue().splitlines()
    return [line[: header.index("SERVICE")].rstrip() for line in lines]


REQUEST = span("request", "", 0)


def test_what_interrupted_attempts_left_is_drawn_in_order_of_attempt() -> None:
    assert drawn(
        REQUEST,
        # The clock of attempt 2's host is ahead: the number decides.
        span("copied by 2", "lost2", 30, attempt="2"),
        span("copied by 1", "lost1", 5, attempt="1"),
        span("prepared by 1", "lost0", 4, attempt="1"),
        span("backup", "request", 20, attempt="3", job="j"),
        attempt=3,
    ) == [
        "request",
        "├─ attempt 1 (interrupted: its own span was lost with its process)",
        "│  ├─ prepared by 1",
        "│  └─ copied by 1",
        "├─ attempt 2 (interrupted: its own span was lost with its process)",
        "│  └─ copied by 2",
        "└─ backup",
    ]


def test_a_line_has_neither_a_service_nor_a_time() -> None:
    output = io.StringIO()
    job = job_pb2.Job(job_id="j", attempt=2)
    made = trace_view.tree([span("copied", "lost", 5, attempt="1")], 160, job)
    Console(file=output, width=160, color_system=None).print(made)
    assert output.getvalue().splitlines()[1].rstrip().endswith("lost with its process)")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (job_pb2.JOB_STATE_RUNNING, "it runs: its own span comes when it ends"),
        (job_pb2.JOB_STATE_WAITING, "interrupted: its own span was lost with its process"),
        (job_pb2.JOB_STATE_SUCCEEDED, "its own span was lost with its process, or has not come yet"),
    ],
)
def test_an_attempt_that_may_still_tell_its_span_is_not_called_interrupted(
    state: job_pb2.JobState.ValueType, words: str
) -> None:
    lines = drawn(REQUEST, span("copied", "missing", 5, attempt="1"), attempt=1, state=state)
    assert lines == ["request", f"attempt 1 ({words})", "└─ copied"]


def test_a_worker_that_was_lost_is_below_the_attempt_that_was_not() -> None:
    assert drawn(
        REQUEST,
        span("backup", "request", 1, attempt="1", job="j"),
        span("copied", "worker", 5, attempt="1"),
        attempt=2,
    ) == [
        "request",
        "└─ backup",
        "   └─ (their own parent was lost with its process)",
        "      └─ copied",
    ]


@pytest.mark.parametrize("attempt", ["", "-1", "x", "²"])
def test_a_span_that_says_no_attempt_is_put_below_none(attempt: str) -> None:
    assert drawn(REQUEST, span("copied", "lost", 5, attempt=attempt), attempt=1) == ["request", "copied"]


def test_an_attempt_whose_request_is_missing_is_itself() -> None:
    assert drawn(span("backup", "request", 1, attempt="1", job="j"), attempt=1) == ["backup"]
