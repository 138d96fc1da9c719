# SPDX-License-Identifier: Apache-2.0
"""Credentials that vSphere refused: nothing logs in with them until they were changed or tested."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from sendense_hub.catalog.schema import refused_logins
from sendense_hub.domain.times import now_us


@dataclass(frozen=True)
class RefusedLogin:
    """One."""

    credential_id: str
    vcenter_name: str
    time_us: int
    message: str
    """What vSphere said."""


def refuse(connection: sa.Connection, credential_id: str, vcenter_name: str, message: str) -> None:
    """From now on; the newest refusal is the one that is kept."""
    lift(connection, credential_id)
    connection.execute(
        refused_logins.insert().values(
            credential_id=credential_id, vcenter_name=vcenter_name, time_us=now_us(), message=message
        )
    )


def lift(connection: sa.Connection, credential_id: str) -> bool:
    """It was changed, tested or deleted; whether it had been refused."""
    lifted = refused_logins.delete().where(refused_logins.c.credential_id == credential_id)
    return connection.execute(lifted).rowcount == 1


def get(connection: sa.Connection, credential_id: str) -> RefusedLogin | None:
    """One, if it is there."""
    query = sa.select(refused_logins).where(refused_logins.c.credential_id == credential_id)
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return RefusedLogin(row.credential_id, row.vcenter_name, row.time_us, row.message)
