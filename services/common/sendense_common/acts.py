# SPDX-License-Identifier: Apache-2.0
"""What a reconciliation does and finds: each act is logged with what and why, and told to who asked."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from sendense.common.v1 import act_pb2 as pb

log = logging.getLogger(__name__)


class Outcome(enum.StrEnum):
    """What became of it."""

    DONE = "done"
    REPORTED = "reported"
    """Found, and left as it is: a person decides."""
    FAILED = "failed"
    """Tried; it is tried again."""


@dataclass(frozen=True)
class Act:
    """One thing that was put right, or that somebody should know of."""

    what: str
    """Stable, as "half_point"."""
    where: str
    why: str
    outcome: Outcome = Outcome.DONE
    remedy: str = ""

    def to_message(self) -> pb.Act:
        """For the wire."""
        outcome = pb.ActOutcome.Value(f"ACT_OUTCOME_{self.outcome.name}")
        return pb.Act(what=self.what, where=self.where, why=self.why, outcome=outcome, remedy=self.remedy)


class ActLog:
    """Logs the acts of one round after another. What stays as it was is not said again in each round."""

    def __init__(self) -> None:
        self._said: set[Act] = set()

    def write(self, acts: Iterable[Act]) -> None:
        """Those of one round, all of them."""
        standing = set()
        for act in acts:
            if act.outcome is Outcome.DONE:
                log.warning("reconciliation: %s %s: %s", act.what, act.where, act.why)
                continue
            standing.add(act)
            if act not in self._said:
                end = "left as it is" if act.outcome is Outcome.REPORTED else "could not be put right"
                words = f"{act.why} {act.remedy}".rstrip()
                log.warning("reconciliation: %s %s (%s): %s", act.what, act.where, end, words)
        self._said = standing
