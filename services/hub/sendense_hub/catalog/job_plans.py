# SPDX-License-Identifier: Apache-2.0
"""What the next attempt of a job goes on with: the newest plan, and which snapshots the layers came from."""

from __future__ import annotations

from dataclasses import dataclass, field

import sqlalchemy as sa

from sendense.agent.v1.backup_pb2 import BackupPlan
from sendense_hub.catalog.schema import job_plans, jobs
from sendense_hub.domain.job_rules import ACTIVE


@dataclass(frozen=True)
class Era:
    """The time in which a layer was written from one snapshot."""

    snapshot_moref: str
    change_id: str
    """Of the disk in that snapshot; empty: none."""
    first_byte: int
    """Of the layer's ledger."""


@dataclass(frozen=True)
class JobPlan:
    """Of one job."""

    plan: BackupPlan
    snapshot_time_us: int
    eras: dict[int, list[Era]] = field(default_factory=dict)
    """By device key, oldest first; at least one."""


def keep(connection: sa.Connection, job_id: str, planned: JobPlan) -> None:
    """Takes the place of what was kept before."""
    forget(connection, job_id)
    eras = {
        str(key): [[era.snapshot_moref, era.change_id, era.first_byte] for era in of_disk]
        for key, of_disk in planned.eras.items()
    }
    connection.execute(
        job_plans.insert().values(
            job_id=job_id,
            snapshot_time_us=planned.snapshot_time_us,
            plan=planned.plan.SerializeToString(),
            eras=eras,
        )
    )


def forget(connection: sa.Connection, job_id: str) -> None:
    """The job has ended."""
    connection.execute(job_plans.delete().where(job_plans.c.job_id == job_id))


def forget_ended(connection: sa.Connection) -> list[str]:
    """Forgets what nobody goes on with; the jobs."""
    active = sa.select(jobs.c.job_id).where(jobs.c.state.in_(sorted(ACTIVE)))
    dead = list(connection.scalars(sa.select(job_plans.c.job_id).where(job_plans.c.job_id.not_in(active))))
    for job_id in dead:
        forget(connection, job_id)
    return dead


def get(connection: sa.Connection, job_id: str) -> JobPlan | None:
    """Of a job whose snapshot was made and whose layers were begun."""
    row = connection.execute(sa.select(job_plans).where(job_plans.c.job_id == job_id)).one_or_none()
    if row is None:
        return None
    eras = {int(key): [Era(*era) for era in of_disk] for key, of_disk in row.eras.items()}
    return JobPlan(BackupPlan.FromString(row.plan), row.snapshot_time_us, eras)
