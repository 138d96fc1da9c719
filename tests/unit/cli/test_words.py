# SPDX-License-Identifier: Apache-2.0
"""Sizes, times and trees as people read them."""

from __future__ import annotations

import io

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sendense.hub.v1 import job_pb2, job_service_pb2
from sendense_cli import job_view, trace_view, words

pytestmark = pytest.mark.unit

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * GIB // 2, "1.5 GiB"), (5 << 50, "5.0 PiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert words.size(count) == text


@given(st.integers(min_value=0, max_value=1 << 62))
def test_a_size_is_off_by_less_than_its_last_digit(count: int) -> None:
    number, unit = words.size(count).split()
    factor = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)
    assert abs(float(number) * factor - count) <= 0.051 * factor
    assert float(number) <= 1024 or unit == "PiB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12 ms"), (4.24, "4.2 s"), (185, "3m 05s"), (3720, "1h 02m"), (90000, "25h 00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_rate_of_no_time_is_no_number() -> None:
    assert words.rate(5 * MIB, 0) == "-"
    assert words.rate(5 * MIB, 2) == "2.5"


def shown(renderable: object, width: int = 80) -> str:
    output = io.StringIO()
    Console(file=output, width=width, color_system=None).print(renderable)
    return output.getvalue()


def span(name: str, span_id: str, parent: str, start_s: float, took_s: float, service: str = "sendense-hub"):
    made = job_service_pb2.Span(name=name, span_id=span_id, parent_span_id=parent, service=service)
    made.start_time.FromNanoseconds(int(start_s * 1e9))
    made.duration.FromNanoseconds(int(took_s * 1e9))
    return made


def test_a_trace_is_a_tree_in_the_order_of_time() -> None:
    spans = [
        span("late", "c", "a", 6.0, 4.0, "sendense-agent"),
        span("/sendense.hub.v1.BackupService/StartBackup", "a", "", 0.0, 10.0),
        span("early", "b", "a", 0.0, 5.0),
        span("inner", "d", "b", 1.0, 0.5),
        span("of a parent that was lost", "e", "gone", 2.0, 1.0),
    ]
    spans[0].error = "went [red]wrong"
    header, *lines = shown(trace_view.tree(spans, 80, job())).splitlines()
    service = header.index("SERVICE")
    assert [line[:service].rstrip() for line in lines] == [
        "StartBackup",
        "├─ early",
        "│  └─ inner",
        "└─ late  went [red]wrong",
        "of a parent that was lost",
    ]
    bars = [line[service + len("credentials  59m 59s  ") :] for line in lines]
    assert bars[0].rstrip() == "█" * 20
    assert bars[1].rstrip() == "█" * 10
    assert bars[3].rstrip() == " " * 12 + "█" * 8
    assert all(len(line.rstrip()) <= 80 for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_names_never_push_the_times_off_the_screen(width: int) -> None:
    lines = shown(trace_view.tree([span("x" * 300, "a", "", 0, 61.5)], width, job()), width).splitlines()
    assert "1m 01s" in lines[1]
    assert "█" * 20 in lines[1]


def job() -> job_pb2.Job:
    made = job_pb2.Job(job_id="3f2a9c1b-0000", vm_name="web01", vcenter_name="prod")
    made.state, made.phase = job_pb2.JOB_STATE_FAILED, job_pb2.JOB_PHASE_DONE
    made.ended_in_phase = job_pb2.JOB_PHASE_COPY
    made.failure.message, made.failure.remedy = "it broke [not markup]", "mend it"
    for key in (2000, 2001):
        made.disks.add(
            key=key, label=f"Hard disk {key - 1999}", capacity_bytes=900 * GIB, mode="incremental",
            read_bytes=999 * MIB, copied_bytes=999 * MIB, wire_bytes=999 * MIB, seconds=1,
            mode_reason="capacity_changed" if key == 2000 else "",
        )  # fmt: skip
    made.disks.add(key=2002, label="Hard disk 3", state=job_pb2.DISK_STATE_SKIPPED, mode_reason="independent")
    made.warnings.add(code="quiesce_fell_back", message="The snapshot is crash-consistent")
    return made


def test_a_failed_job_says_where_why_and_what_to_do_within_80_columns() -> None:
    text = shown(job_view.summary(job()))
    for part in (
        "failed (copy)", "it broke [not markup]", "mend it", "Hard disk 1: capacity changed",
        "Hard disk 3: independent", "The snapshot is crash-consistent", "skipped",
    ):  # fmt: skip
        assert part in text, part
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert sum("Hard disk 1" in line and "incr" in line for line in text.splitlines()) == 1


def test_a_job_takes_as_long_as_it_ran() -> None:
    made = job()
    assert words.elapsed_s(made) == 0
    made.start_time.CopyFrom(Timestamp(seconds=100))
    made.end_time.CopyFrom(Timestamp(seconds=107, nanos=500_000_000))
    assert words.elapsed_s(made) == 7.5
