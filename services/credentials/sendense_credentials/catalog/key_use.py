# SPDX-License-Identifier: Apache-2.0
"""Which credentials are under which key-encryption key."""

from __future__ import annotations

import sqlalchemy as sa

from sendense_credentials.catalog.tables import credentials
from sendense_credentials.domain.credential import Envelope


def counts(connection: sa.Connection) -> dict[str, int]:
    """How many credentials are under each key."""
    rows = connection.execute(sa.select(credentials.c.key_id, sa.func.count()).group_by(credentials.c.key_id))
    return {row[0]: row[1] for row in rows}


def not_under(connection: sa.Connection, key_id: str) -> list[str]:
    """IDs of the credentials that are under another key, in a stable order."""
    return list(
        connection.scalars(
            sa.select(credentials.c.credential_id)
            .where(credentials.c.key_id != key_id)
            .order_by(credentials.c.credential_id)
        )
    )


def rewrap(connection: sa.Connection, credential_id: str, before: Envelope, after: Envelope) -> bool:
    """Puts the same data key under another key; False: the credential has changed by now, or is gone."""
    changed = connection.execute(
        credentials.update()
        .where(
            credentials.c.credential_id == credential_id,
            credentials.c.key_id == before.key_id,
            credentials.c.wrapped_key == before.wrapped_key,
        )
        .values(key_id=after.key_id, wrapped_key=after.wrapped_key)
    )
    return changed.rowcount == 1
