# SPDX-License-Identifier: Apache-2.0
"""Sizes, times and states as people read them."""

from __future__ import annotations

import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.hub.v1 import job_pb2, point_service_pb2

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHORT_ID = 8


def size(count_bytes: float) -> str:
    """1.5 GiB."""
    unit = 0
    while abs(count_bytes) >= 1024 and unit < len(_UNITS) - 1:
        count_bytes /= 1024
        unit += 1
    return f"{count_bytes:.0f} {_UNITS[unit]}" if unit == 0 else f"{count_bytes:.1f} {_UNITS[unit]}"


def rate(count_bytes: float, seconds: float) -> str:
    """MiB per second, as a number."""
    return f"{count_bytes / seconds / 2**20:.1f}" if seconds > 0 else "-"


def moment(timestamp: Timestamp) -> str:
    """Local time to the minute; "-" when it is not set."""
    if not timestamp.seconds:
        return "-"
    return timestamp.ToDatetime(datetime.UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def clock(timestamp: Timestamp) -> str:
    """Local time of day to the second."""
    return timestamp.ToDatetime(datetime.UTC).astimezone().strftime("%H:%M:%S")


def duration(seconds: float) -> str:
    """1h 02m, 3m 05s, 4.2 s, 12 ms."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"


def short(identity: str) -> str:
    """Enough of an ID to name it."""
    return identity[:_SHORT_ID]


def state(job: job_pb2.Job) -> str:
    """The state in a word, as "succeeded"."""
    return job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()


def phase(value: job_pb2.JobPhase.ValueType) -> str:
    """The phase in a word, as "copy"."""
    return job_pb2.JobPhase.Name(value).removeprefix("JOB_PHASE_").lower().replace("_", " ")


def health(point: point_service_pb2.RestorePoint) -> str:
    """When all of its disks were last found right; DAMAGED; "-" when one was not.

    Not at all, or not since it was damaged.
    """
    if any(disk.HasField("damage") for disk in point.disks):
        return "DAMAGED"
    times = [disk.verify_time for disk in point.disks]
    return moment(min(times, key=lambda time: time.ToNanoseconds())) if times else "-"


def took(job: job_pb2.Job) -> str:
    """How long it ran, or has run; "-" for one that never did."""
    return duration(elapsed_s(job)) if job.start_time.seconds else "-"


def elapsed_s(job: job_pb2.Job) -> float:
    """From its start to its end, or to now."""
    if not job.start_time.seconds:
        return 0.0
    end = job.end_time if job.end_time.seconds else Timestamp()
    if not end.seconds:
        end.GetCurrentTime()
    return (end.ToNanoseconds() - job.start_time.ToNanoseconds()) / 1e9
