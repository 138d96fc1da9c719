# SPDX-License-Identifier: Apache-2.0
"""Records as messages, and back: every field that the hash covers comes out as it went in."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from sendense.common.v1 import audit_log_service_pb2 as pb
from sendense_common.audit_log.record import GENESIS, OUTCOMES, Record, checked_time
from sendense_common.audit_log.segments import Unreadable

_PREFIX = "AUDIT_OUTCOME_"
_HASH = len(GENESIS)


def to_entry(entry: Record | Unreadable) -> pb.AuditEntry:
    """For the wire."""
    if isinstance(entry, Unreadable):
        return pb.AuditEntry(unreadable=entry.raw)
    return pb.AuditEntry(
        record=pb.AuditRecord(
            sequence=entry.sequence,
            time=to_time(entry.time_us),
            service=entry.service,
            actor=entry.actor,
            act=entry.act,
            subject=entry.subject,
            outcome=pb.AuditOutcome.Value(_PREFIX + entry.outcome.upper()),
            facts=dict(entry.facts),
            previous_hash=entry.previous,
            record_hash=entry.hash,
        )
    )


def from_entry(entry: pb.AuditEntry) -> Record | Unreadable:
    """From the wire. What no service of ours would say is unreadable."""
    if entry.WhichOneof("entry") != "record":
        return Unreadable(entry.unreadable)
    try:
        return _record(entry.record)
    except ValueError:
        return Unreadable(entry.record.SerializeToString())


def _record(told: pb.AuditRecord) -> Record:
    outcome = {pb.AuditOutcome.Value(_PREFIX + each.upper()): each for each in OUTCOMES}.get(told.outcome)
    if (
        outcome is None
        or told.sequence < 1
        or len(told.previous_hash) != _HASH
        or len(told.record_hash) != _HASH
    ):
        raise ValueError("not what a service writes")
    return Record(
        sequence=told.sequence,
        previous=told.previous_hash,
        time_us=checked_time(told.time.ToMicroseconds()),
        service=told.service,
        actor=told.actor,
        act=told.act,
        subject=told.subject,
        outcome=outcome,
        facts=dict(told.facts),
        hash=told.record_hash,
    )


def to_time(time_us: int) -> Timestamp:
    """Microseconds since 1970."""
    made = Timestamp()
    made.FromMicroseconds(time_us)
    return made
