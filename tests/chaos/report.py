# SPDX-License-Identifier: Apache-2.0
"""build/chaos.json: what was done to the product, and what came of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2
from sendense.hub.v1.job_pb2 import Job


@dataclass
class Report:
    """One run."""

    seed: int
    seconds: float
    faults: dict[str, int]
    """By kind."""
    moments: dict[str, int]
    """Faults by the point of the job at which they came."""
    jobs: int
    completed: int
    failed_clean: int
    failed_because: dict[str, int]
    unclean: list[str]
    """Jobs that did not end, or ended without a cause; and what else went wrong."""
    resumed: int
    """Completed jobs that had been interrupted."""
    identical: int
    not_identical: int
    differences: list[str]
    observed: int
    """States of jobs and points that were read."""
    untrue: list[str]
    """States that cannot have been true."""
    leftovers: int
    left: list[str]
    recopied_bytes: int
    at_risk_bytes: int
    recopied_ratio: float
    """Bytes sent twice by what the checkpoints put at risk; 0 when nothing was interrupted."""
    missing: list[str]
    """What the run did not reach of what it was to do."""

    @property
    def passed(self) -> bool:
        """Whether all that must hold holds."""
        return not (self.unclean or self.not_identical or self.untrue or self.leftovers or self.missing) and (
            self.recopied_ratio <= 1
        )

    def write(self, file: Path) -> None:
        """As JSON."""
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def lines(self) -> list[str]:
        """For people; the last one is the sum."""
        wrong = [
            *(f"unclean: {each}" for each in self.unclean),
            *(f"not identical: {each}" for each in self.differences),
            *(f"untrue: {each}" for each in self.untrue),
            *(f"left: {each}" for each in self.left),
            *(f"missing: {each}" for each in self.missing),
        ]
        causes = ", ".join(f"{name} {count}" for name, count in self.failed_because.items())
        return [
            *wrong,
            f"{sum(self.faults.values())} faults of {len(self.faults)} kinds at {len(self.moments)} moments, "
            f"{self.jobs} jobs: {self.completed} completed ({self.resumed} of them interrupted before), "
            f"{self.failed_clean} failed with a cause ({causes or 'none'})",
            f"{self.identical} points identical, {self.not_identical} not; {self.leftovers} leftovers; "
            f"{self.observed} states read, {len(self.untrue)} untrue; "
            f"recopied {self.recopied_ratio:.2f} of what was at risk; {self.seconds:.0f} s",
            "passed" if self.passed else f"FAILED; replay with: make chaos SEED={self.seed}",
        ]


def because(jobs: Sequence[Job], unclean: Collection[int]) -> dict[str, int]:
    """Failed jobs by reason, without those that gave none."""
    return dict(
        Counter(
            Reason.Name(job.failure.reason).removeprefix("REASON_")
            for job in jobs
            if job.state == job_pb2.JOB_STATE_FAILED and job.failure.reason not in unclean
        )
    )


def recopied(
    jobs: Sequence[Job], kept_bytes: Mapping[str, int], checkpoint_bytes: int, in_flight_bytes: int
) -> tuple[int, int]:
    """(bytes sent twice, bytes at risk) of completed jobs that were interrupted and kept their snapshot.

    Args:
        jobs: all.
        kept_bytes: data in the ledgers of the points, by job.
        checkpoint_bytes: of the agent's configuration.
        in_flight_bytes: what a mover has under way beside its checkpoint.

    At each interruption each disk may lose one checkpoint and what is in flight beside it; what a new
    snapshot made stale is no part of that.
    """
    twice = risk = 0
    for job in jobs:
        if job.state != job_pb2.JOB_STATE_SUCCEEDED or not job.interruptions:
            continue
        if any(each.went_on in {"new_snapshot", "from_the_start"} for each in job.interruptions):
            continue
        copying = [each for each in job.interruptions if each.phase >= job_pb2.JOB_PHASE_LAYERS]
        copied = sum(disk.copied_bytes for disk in job.disks)
        twice += max(0, copied - kept_bytes.get(job.job_id, copied))
        risk += len(copying) * len(job.disks) * (checkpoint_bytes + in_flight_bytes)
    return twice, risk
