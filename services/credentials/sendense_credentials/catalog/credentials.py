# SPDX-License-Identifier: Apache-2.0
"""Rows of credentials."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sendense_credentials.catalog import grants
from sendense_credentials.catalog.tables import credentials
from sendense_credentials.domain.credential import Credential, Envelope


def listed(connection: sa.Connection) -> list[Credential]:
    """All, by name."""
    granted = grants.listed(connection)
    rows = connection.execute(sa.select(credentials).order_by(credentials.c.name))
    return [_credential(row, granted.get(row.credential_id, [])) for row in rows]


def find(connection: sa.Connection, credential_id: str) -> Credential | None:
    """By ID."""
    return _one(connection, credentials.c.credential_id == credential_id)


def find_by_name(connection: sa.Connection, name: str) -> Credential | None:
    """By name."""
    return _one(connection, credentials.c.name == name)


def find_by_request(connection: sa.Connection, request_id: str) -> Credential | None:
    """By the request that stored it."""
    return _one(connection, credentials.c.request_id == request_id)


def insert(connection: sa.Connection, credential: Credential, request_id: str) -> None:
    """Keeps a new one."""
    connection.execute(
        credentials.insert().values(
            credential_id=credential.credential_id,
            request_id=request_id,
            name=credential.name,
            create_time_us=credential.create_time_us,
            **_changing(credential),
        )
    )


def update(connection: sa.Connection, credential: Credential) -> bool:
    """Keeps the new secret of one that is there; whether it is."""
    changed = connection.execute(
        credentials.update()
        .where(credentials.c.credential_id == credential.credential_id)
        .values(**_changing(credential))
    )
    return changed.rowcount == 1


def delete(connection: sa.Connection, credential_id: str) -> bool:
    """Removes one, its grants and its leases; whether it was there."""
    gone = connection.execute(credentials.delete().where(credentials.c.credential_id == credential_id))
    return gone.rowcount == 1


def _changing(credential: Credential) -> dict[str, Any]:
    return {
        "version": credential.version,
        "key_id": credential.envelope.key_id,
        "wrapped_key": credential.envelope.wrapped_key,
        "ciphertext": credential.envelope.ciphertext,
        "first_key_id": credential.envelope.first_key_id,
        "rotate_time_us": credential.rotate_time_us,
        "bound_to": credential.bound_to,
    }


def _one(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Credential | None:
    row = connection.execute(sa.select(credentials).where(condition)).one_or_none()
    return None if row is None else _credential(row, grants.of(connection, row.credential_id))


def _credential(row: sa.Row[Any], agent_ids: list[str]) -> Credential:
    return Credential(
        credential_id=row.credential_id,
        name=row.name,
        version=row.version,
        create_time_us=row.create_time_us,
        rotate_time_us=row.rotate_time_us,
        bound_to=row.bound_to,
        agent_ids=tuple(agent_ids),
        envelope=Envelope(row.key_id, row.wrapped_key, row.ciphertext, row.first_key_id),
    )
