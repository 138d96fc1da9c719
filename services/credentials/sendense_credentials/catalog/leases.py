# SPDX-License-Identifier: Apache-2.0
"""Rows of leases."""

from __future__ import annotations

import sqlalchemy as sa

from sendense_credentials.catalog.tables import leases
from sendense_credentials.domain.lease import Lease


def insert(connection: sa.Connection, lease: Lease) -> None:
    """Keeps a new one."""
    connection.execute(
        leases.insert().values(
            lease_id=lease.lease_id,
            credential_id=lease.credential_id,
            agent_id=lease.agent_id,
            operation=lease.operation,
            subject_id=lease.subject_id,
            expire_time_us=lease.expire_time_us,
            redeem_time_us=None,
        )
    )


def find(connection: sa.Connection, lease_id: str) -> Lease | None:
    """By ID."""
    row = connection.execute(sa.select(leases).where(leases.c.lease_id == lease_id)).one_or_none()
    if row is None:
        return None
    return Lease(
        lease_id=row.lease_id,
        credential_id=row.credential_id,
        agent_id=row.agent_id,
        operation=row.operation,
        subject_id=row.subject_id,
        expire_time_us=row.expire_time_us,
        redeem_time_us=row.redeem_time_us,
    )


def use_up(
    connection: sa.Connection, *, lease_id: str, agent_id: str, operation: int, now_us: int
) -> str | None:
    """Uses up a lease that fits, in one statement: of any number of callers one gets the credential's ID."""
    found: str | None = connection.scalar(
        leases.update()
        .where(
            leases.c.lease_id == lease_id,
            leases.c.agent_id == agent_id,
            leases.c.operation == operation,
            leases.c.redeem_time_us.is_(None),
            leases.c.expire_time_us > now_us,
        )
        .values(redeem_time_us=now_us)
        .returning(leases.c.credential_id)
    )
    return found


def end(connection: sa.Connection, lease_id: str) -> bool:
    """Removes a lease that was not used; whether there was one."""
    gone = connection.execute(
        leases.delete().where(leases.c.lease_id == lease_id, leases.c.redeem_time_us.is_(None))
    )
    return gone.rowcount == 1


def end_all_of(connection: sa.Connection, credential_id: str) -> int:
    """Removes the unused leases of a credential; how many there were."""
    gone = connection.execute(
        leases.delete().where(leases.c.credential_id == credential_id, leases.c.redeem_time_us.is_(None))
    )
    return gone.rowcount


def forget_expired(connection: sa.Connection, before_us: int) -> None:
    """Removes what expired before a time, used or not."""
    connection.execute(leases.delete().where(leases.c.expire_time_us < before_us))
