# SPDX-License-Identifier: Apache-2.0
"""Snapshots that ended jobs may have left at a site, until somebody has looked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from sendense_hub.catalog.schema import pending_cleanups
from sendense_hub.domain.times import now_us


@dataclass(frozen=True)
class PendingCleanup:
    """A snapshot of one job."""

    job_id: str
    vcenter_name: str
    vm_instance_uuid: str
    vm_name: str


def add(connection: sa.Connection, cleanup: PendingCleanup) -> None:
    """Remembers one; twice is once."""
    done(connection, [cleanup.job_id])
    connection.execute(
        pending_cleanups.insert().values(
            job_id=cleanup.job_id,
            vcenter_name=cleanup.vcenter_name,
            vm_instance_uuid=cleanup.vm_instance_uuid,
            vm_name=cleanup.vm_name,
            create_time_us=now_us(),
        )
    )


def done(connection: sa.Connection, job_ids: Iterable[str]) -> None:
    """Nothing is left of these."""
    connection.execute(pending_cleanups.delete().where(pending_cleanups.c.job_id.in_(list(job_ids))))


def listed(connection: sa.Connection) -> list[PendingCleanup]:
    """All, oldest first."""
    rows = connection.execute(sa.select(pending_cleanups).order_by(pending_cleanups.c.create_time_us))
    return [PendingCleanup(row.job_id, row.vcenter_name, row.vm_instance_uuid, row.vm_name) for row in rows]
