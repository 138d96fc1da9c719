# SPDX-License-Identifier: Apache-2.0
"""When an interrupted job goes on, and when it is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb

_LASTING = frozenset(
    {
        Reason.REASON_ATTEMPT_FENCED,
        Reason.REASON_HUB_RESTARTED,
        Reason.REASON_SERVICE_STOPPING,
        Reason.REASON_TUNNEL_LOST,
    }
)
"""Of the following, what may happen again and again without meaning anything."""

_DIED = _LASTING | frozenset(
    {
        Reason.REASON_COPY_PROCESS_DIED,
        Reason.REASON_JOB_LOST,
    }
)
"""Somebody who worked on the job went away: says nothing about the job, so it goes on whatever it did."""

_ABSENT = frozenset(
    {
        Reason.REASON_CLOCKS_DIFFER,
        Reason.REASON_DEADLINE_EXCEEDED,
        Reason.REASON_KEY_PROVIDER_FORBIDDEN,
        Reason.REASON_KEY_PROVIDER_UNAVAILABLE,
        Reason.REASON_REPOSITORY_FULL,
        Reason.REASON_REPOSITORY_UNAVAILABLE,
        Reason.REASON_SERVICE_UNAVAILABLE,
        Reason.REASON_SITE_OFFLINE,
        Reason.REASON_VCENTER_UNREACHABLE,
        Reason.REASON_VM_BUSY,
    }
)
"""Something is missing that comes back by itself, or that a person brings back: worth waiting for long."""

_BROKEN = frozenset(
    {
        Reason.REASON_AGENT_KEYS_REPLACED,
        Reason.REASON_EXPORT_FAILED,
        Reason.REASON_LEASE_EXPIRED,
        Reason.REASON_SNAPSHOT_FAILED,
        Reason.REASON_SNAPSHOT_LOST,
        Reason.REASON_SOURCE_READ_FAILED,
        Reason.REASON_TARGET_WRITE_FAILED,
        Reason.REASON_TUNNEL_REFUSED,
        Reason.REASON_VCENTER_SESSION_LOST,
        Reason.REASON_VSPHERE_FAULT,
    }
)
"""Something failed that may work at the next try, or never: a few tries, as long as none gets any further."""

_SAYS_NOTHING_OF_THE_JOB = _DIED | frozenset(
    {
        Reason.REASON_AGENT_KEYS_REPLACED,
        Reason.REASON_SITE_OFFLINE,
    }
)
"""What interrupts also a job that has only begun: it was right to accept it, and nothing about it changed."""

_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_NO_PAUSE = frozenset({Reason.REASON_SERVICE_STOPPING, Reason.REASON_HUB_RESTARTED})


@dataclass(frozen=True)
class Patience:
    """How long a job that gets no further is tried."""

    absent_s: float = 48 * 3600.0
    """For what is missing, since the job last got further."""
    tries: int = 5
    """For what fails, in a row without getting further."""


def may_go_on(reason: Reason.ValueType, *, planned: bool, first: bool) -> bool:
    """Whether a failure of an attempt interrupts the job rather than ends it.

    Args:
        reason: of the failure.
        planned: whether the hub has the plan and layers of an attempt: there is something to go on with.
        first: whether it was the first attempt. What is missing when a job begins is told at once, but for
            the site, which was connected when the job was accepted, and its keys, of which it gets others.
    """
    if planned or not first:
        return reason in _DIED | _ABSENT | _BROKEN
    return reason in _SAYS_NOTHING_OF_THE_JOB


def next_try_us(interruptions: Sequence[pb.JobInterruption], patience: Patience, now_us: int) -> int | None:
    """When the next attempt begins, by the wall clock; None when the job is given up.

    Args:
        interruptions: of the job, the last one just now.
        patience: for how long.
        now_us: the wall clock.
    """
    last = interruptions[-1]
    reason = last.failure.reason
    if now_us - stalled_since_us(interruptions) > patience.absent_s * 1e6:
        return None
    if reason not in _ABSENT | _LASTING and _failed_in_a_row(interruptions) >= patience.tries:
        return None
    pause_s = _PAUSES_S[min(last.fruitless_attempts, len(_PAUSES_S) - 1)]
    return now_us + int(1e6 * (0.0 if reason in _NO_PAUSE else pause_s))


def time_has_come(last: pb.JobInterruption, now_us: int) -> bool:
    """Whether the pause after an interruption is over; also when the clock was set back since."""
    return not last.time.ToMicroseconds() <= now_us < last.next_try_time.ToMicroseconds()


def _failed_in_a_row(interruptions: Sequence[pb.JobInterruption]) -> int:
    """Fruitless attempts since something was missing: what came of waiting says nothing about what fails."""
    last, *earlier = reversed(interruptions)
    for each in earlier:
        if not each.fruitless_attempts:
            break
        if each.failure.reason in _ABSENT | _LASTING:
            return last.fruitless_attempts - each.fruitless_attempts
    return last.fruitless_attempts


def stalled_since_us(interruptions: Sequence[pb.JobInterruption]) -> int:
    """Since when the job has got no further: the interruption after which nothing more was stored."""
    since = interruptions[-1]
    for each in reversed(interruptions[:-1]):
        if not since.fruitless_attempts:
            break
        since = each
    return since.time.ToMicroseconds()


def record(job: pb.Job, interruption: pb.JobInterruption, *, got_further: bool) -> None:
    """Adds an interruption to a job; one that is like the last, without anything gained, takes its place.

    So a job that waits a day for its site has one line about it, with the moment when it began.
    """
    before = job.interruptions[-1] if job.interruptions else None
    if not got_further and before is not None:
        interruption.fruitless_attempts = before.fruitless_attempts + 1
        if before.fruitless_attempts and before.failure.reason == interruption.failure.reason:
            interruption.time.CopyFrom(before.time)
            interruption.recopied_bytes += before.recopied_bytes
            del job.interruptions[-1]
    elif not got_further:
        interruption.fruitless_attempts = 1
    job.interruptions.append(interruption)
