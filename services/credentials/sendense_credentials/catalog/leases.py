# SPDX-License-Identifier: Apache-2.0
"""Rows of leases."""

from __future__ import annotations

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense_credentials.catalog.tables import leases
from sendense_credentials.domain.lease import Lease

_UNUSED = (leases.c.redeem_time_us.is_(None), leases.c.end_time_us.is_(None))


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
        end_time_us=row.end_time_us,
        end_cause=row.end_cause or "",
        end_reason=row.end_reason or Reason.REASON_LEASE_REVOKED,
    )


def use_up(
    connection: sa.Connection,
    *,
    lease_id: str,
    credential_id: str,
    agent_id: str,
    operation: int,
    now_us: int,
) -> bool:
    """Uses up a lease that fits, in one statement: of any number of callers one gets it."""
    used = connection.execute(
        leases.update()
        .where(
            leases.c.lease_id == lease_id,
            leases.c.credential_id == credential_id,
            leases.c.agent_id == agent_id,
            leases.c.operation == operation,
            leases.c.expire_time_us > now_us,
            *_UNUSED,
        )
        .values(redeem_time_us=now_us)
    )
    return used.rowcount == 1


def end(connection: sa.Connection, lease_id: str, now_us: int, cause: str) -> bool:
    """Ends a lease that was not used; whether there was one."""
    return _end(connection, leases.c.lease_id == lease_id, now_us, cause) == 1


def end_all_of(
    connection: sa.Connection, credential_id: str, now_us: int, cause: str, *, agent_id: str = ""
) -> int:
    """Ends the unused leases of a credential, of all agents or of one; how many there were."""
    mine = leases.c.credential_id == credential_id
    if agent_id:
        mine = sa.and_(mine, leases.c.agent_id == agent_id)
    return _end(connection, mine, now_us, cause)


def end_all_for(
    connection: sa.Connection, agent_id: str, now_us: int, cause: str, reason: Reason.ValueType
) -> int:
    """Ends the unused leases of an agent; they are refused with `reason` from now on. How many."""
    return _end(connection, leases.c.agent_id == agent_id, now_us, cause, reason)


def open_of(connection: sa.Connection, credential_id: str, now_us: int) -> list[Lease]:
    """Those of a credential that could be used now."""
    query = sa.select(leases.c.lease_id).where(
        leases.c.credential_id == credential_id, leases.c.expire_time_us > now_us, *_UNUSED
    )
    found = (find(connection, lease_id) for lease_id in connection.scalars(query).all())
    return [lease for lease in found if lease is not None]


def _end(
    connection: sa.Connection,
    which: sa.ColumnElement[bool],
    now_us: int,
    cause: str,
    reason: Reason.ValueType = Reason.REASON_LEASE_REVOKED,
) -> int:
    ended = leases.update().where(which, *_UNUSED)
    return connection.execute(
        ended.values(end_time_us=now_us, end_cause=cause, end_reason=int(reason))
    ).rowcount


def forget_expired(connection: sa.Connection, before_us: int) -> None:
    """Removes what expired before a time, used or not."""
    connection.execute(leases.delete().where(leases.c.expire_time_us < before_us))
