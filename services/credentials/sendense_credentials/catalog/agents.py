# SPDX-License-Identifier: Apache-2.0
"""Rows of agents."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentPublicKeys
from sendense_credentials.catalog import leases
from sendense_credentials.catalog.tables import agents
from sendense_credentials.domain.agent import Agent


def listed(connection: sa.Connection) -> list[Agent]:
    """All, by ID."""
    return [_agent(row) for row in connection.execute(sa.select(agents).order_by(agents.c.agent_id))]


def find(connection: sa.Connection, agent_id: str) -> Agent | None:
    """By ID."""
    row = connection.execute(sa.select(agents).where(agents.c.agent_id == agent_id)).one_or_none()
    return None if row is None else _agent(row)


def register(
    connection: sa.Connection, agent: Agent, now_us: int, *, replace: bool = False
) -> tuple[bool, int]:
    """Keeps a new one.

    Args:
        connection: a transaction.
        agent: to keep.
        now_us: the wall clock.
        replace: an agent that is there with other keys has these from now on. Its open leases end:
            they may be with whoever has its old keys.

    Returns:
        Whether anything changed (False: it is there with the same keys), and how many leases ended.

    Raises:
        SendenseError: SITE_EXISTS when the agent is there with other keys, or another agent has one of these.
    """
    before = find(connection, agent.agent_id)
    if before == agent:
        return False, 0
    other = _owner_of(connection, agent)
    owner = other or (agent.agent_id if before and not replace else None)
    if owner is not None:
        raise SendenseError(
            Reason.REASON_SITE_EXISTS,
            f"agent {owner} is registered already, with {'one of these' if other else 'other'} keys",
            remedy=f"Compare the fingerprints. If agent {owner} is to have new keys: "
            f"`sendense agent rotate-key {owner}`.",
            site=owner,
        )
    if before:
        connection.execute(
            agents.update()
            .where(agents.c.agent_id == agent.agent_id)
            .values(
                signing_public_key=agent.keys.signing,
                sealing_public_key=agent.keys.sealing,
                replaced_signing_key=before.keys.signing,
            )
        )
        cause, reason = "its agent got new keys", Reason.REASON_AGENT_KEYS_REPLACED
        return True, leases.end_all_for(connection, agent.agent_id, now_us, cause, reason)
    connection.execute(
        agents.insert().values(
            agent_id=agent.agent_id,
            signing_public_key=agent.keys.signing,
            sealing_public_key=agent.keys.sealing,
            create_time_us=now_us,
        )
    )
    return True, 0


def delete(connection: sa.Connection, agent_id: str) -> bool:
    """Removes one, its grants and its leases; whether it was there."""
    return connection.execute(agents.delete().where(agents.c.agent_id == agent_id)).rowcount == 1


def _agent(row: sa.Row[Any]) -> Agent:
    keys = AgentPublicKeys(row.signing_public_key, row.sealing_public_key)
    return Agent(row.agent_id, keys, row.replaced_signing_key)


def _owner_of(connection: sa.Connection, agent: Agent) -> str | None:
    """Another agent that has one of its keys already."""
    keys = agent.keys
    return connection.scalar(
        sa.select(agents.c.agent_id)
        .where(
            sa.or_(agents.c.signing_public_key == keys.signing, agents.c.sealing_public_key == keys.sealing),
            agents.c.agent_id != agent.agent_id,
        )
        .limit(1)
    )
