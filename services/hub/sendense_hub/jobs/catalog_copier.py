# SPDX-License-Identifier: Apache-2.0
"""Copies the catalog into every repository: at the start, after jobs have ended, and now and then."""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path
from typing import NoReturn

import sqlalchemy as sa

from sendense_common.errors import SendenseError
from sendense_hub.catalog import copies, schema
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import catalog_copies

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 15.0


class CatalogCopier:
    """One hub's."""

    def __init__(
        self, workshop: Workshop, catalog_file: Path, *, at_most_every_s: float, at_least_every_s: float
    ) -> None:
        """What is copied, and when.

        Args:
            workshop: of the hub.
            catalog_file: SQLite.
            at_most_every_s: jobs that end within this time are waited for and share a copy.
            at_least_every_s: whatever happens or not.
        """
        self._workshop = workshop
        self._catalog_file = catalog_file
        self._at_most_every_s = at_most_every_s
        self._at_least_every_s = at_least_every_s

    async def run(self) -> NoReturn:
        """Goes on until it is cancelled. What cannot be copied now is copied later; jobs go on."""
        clock = asyncio.get_running_loop().time
        copied_at, known = -self._at_least_every_s, ""
        while True:
            try:
                news = await self._workshop.catalog.run(_news)
                age_s = clock() - copied_at
                if age_s >= self._at_least_every_s or (news != known and age_s >= self._at_most_every_s):
                    copied_at, known = clock(), news
                    await self.copy()
            except Exception:
                log.exception("the catalog is copied later")
            await asyncio.sleep(min(_LOOK_EVERY_S, self._at_most_every_s))

    async def copy(self) -> None:
        """One copy into each repository that can be used."""
        made = self._catalog_file.with_name(".catalog-copy")
        moment = datetime.datetime.now(datetime.UTC)
        hub_id = self._workshop.catalog.hub_id
        try:
            await asyncio.to_thread(copies.write, self._catalog_file, made)
            for repository in list(self._workshop.repositories.values()):
                try:
                    await asyncio.to_thread(catalog_copies.store, repository, hub_id, made, moment)
                except SendenseError as error:
                    log.warning("no copy of the catalog in repository %s: %s", repository.name, error)
        finally:
            await asyncio.to_thread(made.unlink, missing_ok=True)


def _news(connection: sa.Connection) -> str:
    """Changes when something has happened that would be missed."""
    jobs, points = schema.jobs.c, schema.restore_points.c
    facts: list[object] = [
        connection.scalar(sa.select(sa.func.max(jobs.end_time_us))),
        connection.scalar(sa.select(sa.func.max(points.complete_time_us))),
    ]
    tables = (schema.jobs, schema.restore_points, schema.sites, schema.vcenters, schema.pending_cleanups)
    facts += [connection.scalar(sa.select(sa.func.count()).select_from(table)) for table in tables]
    return repr(facts)
