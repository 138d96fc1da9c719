# SPDX-License-Identifier: Apache-2.0
"""Rows of agents."""

from __future__ import annotations

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentPublicKeys
from sendense_credentials.catalog.tables import agents
from sendense_credentials.domain.agent import Agent


def listed(connection: sa.Connection) -> list[Agent]:
    """All, by ID."""
    return [
        Agent(row.agent_id, AgentPublicKeys(row.signing_public_key, row.sealing_public_key))
        for row in connection.execute(sa.select(agents).order_by(agents.c.agent_id))
    ]


def find(connection: sa.Connection, agent_id: str) -> Agent | None:
    """By ID."""
    row = connection.execute(sa.select(agents).where(agents.c.agent_id == agent_id)).one_or_none()
    if row is None:
        return None
    return Agent(row.agent_id, AgentPublicKeys(row.signing_public_key, row.sealing_public_key))


def register(connection: sa.Connection, agent: Agent, now_us: int) -> bool:
    """Keeps a new one; whether it is new (False: it is there with the same keys).

    Raises:
        SendenseError: SITE_EXISTS when the agent is there with other keys, or another agent has one of these.
    """
    before = find(connection, agent.agent_id)
    if before == agent:
        return False
    owner = agent.agent_id if before else _owner_of(connection, agent.keys)
    if owner is not None:
        raise SendenseError(
            Reason.REASON_SITE_EXISTS,
            f"agent {owner} is registered already, with {'other' if before else 'one of these'} keys",
            remedy=f"Compare the fingerprints. If agent {owner} was made anew, remove it first.",
            site=owner,
        )
    connection.execute(
        agents.insert().values(
            agent_id=agent.agent_id,
            signing_public_key=agent.keys.signing,
            sealing_public_key=agent.keys.sealing,
            create_time_us=now_us,
        )
    )
    return True


def delete(connection: sa.Connection, agent_id: str) -> bool:
    """Removes one and its leases; whether it was there."""
    return connection.execute(agents.delete().where(agents.c.agent_id == agent_id)).rowcount == 1


def _owner_of(connection: sa.Connection, keys: AgentPublicKeys) -> str | None:
    """The agent that has one of these keys already."""
    return connection.scalar(
        sa.select(agents.c.agent_id)
        .where(
            sa.or_(agents.c.signing_public_key == keys.signing, agents.c.sealing_public_key == keys.sealing)
        )
        .limit(1)
    )
