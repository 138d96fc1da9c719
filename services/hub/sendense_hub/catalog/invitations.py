# SPDX-License-Identifier: Apache-2.0
"""Rows of invitations: the newest of each site."""

from __future__ import annotations

import sqlalchemy as sa

from sendense_hub.catalog.schema import invitations
from sendense_hub.domain.invitations import Invitation, ShownKeys


def put(connection: sa.Connection, invitation: Invitation) -> None:
    """Keeps one, in the place of an earlier one."""
    forget(connection, invitation.site)
    keys = invitation.keys
    connection.execute(
        invitations.insert().values(
            site_name=invitation.site,
            code_hash=invitation.code_hash,
            replaced_code_hash=invitation.replaced_code_hash,
            state=invitation.state,
            rotates=invitation.rotates,
            create_time_us=invitation.create_time_us,
            expire_time_us=invitation.expire_time_us,
            ssh_public_key=keys.ssh_public_key,
            fingerprint=keys.fingerprint,
            signing_public_key=keys.signing,
            sealing_public_key=keys.sealing,
            why=invitation.why,
        )
    )


def find(connection: sa.Connection, site: str) -> Invitation | None:
    """The newest of a site."""
    row = connection.execute(sa.select(invitations).where(invitations.c.site_name == site)).one_or_none()
    return None if row is None else _invitation(row)


def listed(connection: sa.Connection) -> list[Invitation]:
    """By site."""
    rows = connection.execute(sa.select(invitations).order_by(invitations.c.site_name))
    return [_invitation(row) for row in rows]


def forget(connection: sa.Connection, site: str) -> None:
    """There is none of a site."""
    connection.execute(invitations.delete().where(invitations.c.site_name == site))


def _invitation(row: sa.Row[tuple[object, ...]]) -> Invitation:
    return Invitation(
        site=row.site_name,
        code_hash=row.code_hash,
        replaced_code_hash=row.replaced_code_hash,
        state=row.state,
        rotates=row.rotates,
        create_time_us=row.create_time_us,
        expire_time_us=row.expire_time_us,
        keys=ShownKeys(row.ssh_public_key, row.fingerprint, row.signing_public_key, row.sealing_public_key),
        why=row.why,
    )
