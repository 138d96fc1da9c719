# SPDX-License-Identifier: Apache-2.0
"""Heads of audit logs, as this service has seen them: of its own."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from sendense_common.audit_log import SeenHead
from sendense_credentials.catalog.database import Catalog
from sendense_credentials.catalog.tables import audit_heads


class AuditHeads:
    """In the database, one row for each log."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def load(self) -> Sequence[SeenHead]:
        """All, by log."""
        return await self._catalog.run(_listed)

    async def keep(self, head: SeenHead) -> None:
        """In the place of the one of the same log."""
        await self._catalog.run(lambda connection: _replace(connection, head))

    async def forget(self, of_log: str) -> None:
        """The one of this log."""
        await self._catalog.run(
            lambda connection: connection.execute(audit_heads.delete().where(audit_heads.c.log == of_log))
        )


def _listed(connection: sa.Connection) -> list[SeenHead]:
    return [
        SeenHead(row.log, row.sequence, row.record_hash, row.seen_time_us, row.contradiction)
        for row in connection.execute(sa.select(audit_heads).order_by(audit_heads.c.log))
    ]


def _replace(connection: sa.Connection, head: SeenHead) -> None:
    connection.execute(audit_heads.delete().where(audit_heads.c.log == head.log))
    connection.execute(
        audit_heads.insert().values(
            log=head.log,
            sequence=head.sequence,
            record_hash=head.hash,
            seen_time_us=head.seen_time_us,
            contradiction=head.contradiction,
        )
    )
