# SPDX-License-Identifier: Apache-2.0
"""What becomes of things that a hub finds: removed only when they are provably nobody's. Pure decisions."""

from __future__ import annotations

import enum

from sendense.hub.v1 import job_pb2 as pb
from sendense_hub.domain.job_rules import ACTIVE, ENDED


class Fate(enum.Enum):
    """Of something that was found."""

    KEEP = enum.auto()
    """Somebody has it."""
    REMOVE = enum.auto()
    REPORT = enum.auto()
    """Nobody here knows whose it is."""


def fate_of_half_point(
    *, hub_id: str, owner_hub_id: str, job_state: pb.JobState.ValueType | None, only_ours: bool
) -> Fate:
    """Of a directory without a commit mark that no row of the catalog speaks of.

    Args:
        hub_id: of this hub.
        owner_hub_id: that the directory names; empty: it names nobody.
        job_state: of the job that it names; None: the catalog does not know that job.
        only_ours: whether a hub makes everything that is in there.
    """
    if owner_hub_id != hub_id or not only_ours or job_state is None:
        return Fate.REPORT
    return Fate.REMOVE if job_state in ENDED else Fate.KEEP


def fate_of_snapshot(*, job_state: pb.JobState.ValueType | None, pending: bool) -> Fate:
    """Of a snapshot that carries this hub's ID.

    Args:
        job_state: of the job that it names, read after the snapshot was found; None: it is not known.
        pending: whether its removal is on its way.
    """
    return Fate.KEEP if pending or job_state in ACTIVE else Fate.REMOVE


def is_due(now_s: float, asked_at_s: float | None, *, every_s: float) -> bool:
    """Whether it is time to ask a vCenter again; None: it was never asked."""
    return asked_at_s is None or now_s - asked_at_s >= every_s
