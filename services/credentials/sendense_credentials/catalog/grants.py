# SPDX-License-Identifier: Apache-2.0
"""Rows of grants: which agent may open which credential."""

from __future__ import annotations

from collections import defaultdict

import sqlalchemy as sa

from sendense_credentials.catalog.tables import grants


def exists(connection: sa.Connection, credential_id: str, agent_id: str) -> bool:
    """Whether there is one."""
    query = sa.select(grants.c.agent_id).where(_is(credential_id, agent_id))
    return connection.scalar(query) is not None


def add(connection: sa.Connection, credential_id: str, agent_id: str, now_us: int) -> bool:
    """Keeps one; whether it is new. Both ends must be there."""
    if exists(connection, credential_id, agent_id):
        return False
    connection.execute(
        grants.insert().values(credential_id=credential_id, agent_id=agent_id, create_time_us=now_us)
    )
    return True


def remove(connection: sa.Connection, credential_id: str, agent_id: str) -> bool:
    """Takes one back; whether it was there."""
    return connection.execute(grants.delete().where(_is(credential_id, agent_id))).rowcount == 1


def of(connection: sa.Connection, credential_id: str) -> list[str]:
    """The agents that one credential is granted to, sorted."""
    query = sa.select(grants.c.agent_id).where(grants.c.credential_id == credential_id)
    return list(connection.scalars(query.order_by(grants.c.agent_id)))


def listed(connection: sa.Connection) -> dict[str, list[str]]:
    """By credential: the agents it is granted to, sorted."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(sa.select(grants).order_by(grants.c.agent_id)):
        found[row.credential_id].append(row.agent_id)
    return found


def _is(credential_id: str, agent_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(grants.c.credential_id == credential_id, grants.c.agent_id == agent_id)
