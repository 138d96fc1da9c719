# SPDX-License-Identifier: Apache-2.0
"""Who did what: an append-only log of each service, chained by hashes.

Not the CBT audit, which reads again what did not change (`sendense_hub.repository.audit`).

A service opens its log once, with `opened`. Where something is decided, one line says so:

    await audit_log.record("backup.start", subject=job_id, vm=name)           # in a handler
    audit_log.record_blocking("agent.revoke", subject=site)                   # last in a transaction
    await audit_log.record("lease.redeem", subject=lease_id, outcome="refused", actor="agent:paris")
    async with audit_log.recorded("point.export", subject=point_id): ...      # what takes long

It returns when the record is on disk. An act that changes rights (`catalogue.RIGHTS`) and cannot be recorded
raises AUDIT_LOG_UNAVAILABLE and must then not happen: record it in the transaction, before that commits. So
the log may name an act that a crash undid, and never lacks one that happened.
Facts are short words and numbers. A field that is named like a secret is refused.
"""

from sendense_common.audit_log._current import (
    current,
    opened,
    record,
    record_blocking,
    recorded,
    system_actor,
)
from sendense_common.audit_log.checking import Anchor, Checker, Finding, Problem
from sendense_common.audit_log.heads import HeadStore, SeenHead, Witness
from sendense_common.audit_log.log import AuditLog, Head, Sizes
from sendense_common.audit_log.record import GENESIS, Outcome, Record
from sendense_common.audit_log.segments import Unreadable, read

__all__ = [
    "GENESIS",
    "Anchor",
    "AuditLog",
    "Checker",
    "Finding",
    "Head",
    "HeadStore",
    "Outcome",
    "Problem",
    "Record",
    "SeenHead",
    "Sizes",
    "Unreadable",
    "Witness",
    "current",
    "opened",
    "read",
    "record",
    "record_blocking",
    "recorded",
    "system_actor",
]
