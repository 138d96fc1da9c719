# SPDX-License-Identifier: Apache-2.0
"""Opening the catalog and running transactions on it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.catalog import schema

T = TypeVar("T")

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 10_000


class Catalog:
    """A database and the one thread that talks to it: SQLite has one writer anyway."""

    def __init__(self, engine: sa.Engine, hub_id: str) -> None:
        """Made by `open_catalog`."""
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")
        self.hub_id = hub_id
        """UUID of this hub, in the description of every snapshot it has made."""

    async def run(self, transaction: Callable[[sa.Connection], T]) -> T:
        """Runs `transaction` in its thread; commits what it did, or nothing when it raises.

        A caller that is cancelled does not stop it: a transaction is never half waited for.

        Raises:
            SendenseError: SERVICE_UNAVAILABLE when the database cannot be used now (locked, disk full).
        """

        def whole() -> T:
            try:
                with self._engine.begin() as connection:
                    return transaction(connection)
            except sa.exc.OperationalError as error:
                raise SendenseError(
                    Reason.REASON_SERVICE_UNAVAILABLE,
                    f"the catalog cannot be used: {error.orig}",
                    remedy="Check the disk that the hub's state directory is on, and its free space.",
                ) from error

        asking = contextvars.copy_context()  # who asks is known in the transaction too
        running = asyncio.get_running_loop().run_in_executor(self._thread, asking.run, whole)
        # A caller that hung up wants to hear of no failure; asyncio would log it as one that nobody heard of.
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(running)

    def close(self) -> None:
        """Waits for what runs."""
        self._thread.shutdown()
        self._engine.dispose()


@contextlib.asynccontextmanager
async def open_catalog(url: str) -> AsyncIterator[Catalog]:
    """Opens the catalog at a SQLAlchemy URL and brings its tables up to date.

    Args:
        url: `sqlite:////path/of/catalog.sqlite` (made with mode 0600) or `postgresql+psycopg://…`.

    Raises:
        SendenseError: INTERNAL when it cannot be opened, is none, or was made by a newer version.
    """
    catalog = await asyncio.to_thread(_open, url)
    try:
        yield catalog
    finally:
        await asyncio.to_thread(catalog.close)


def _open(url: str) -> Catalog:
    engine = sa.create_engine(url)
    if engine.dialect.name == "sqlite":
        assert engine.url.database is not None
        os.close(os.open(engine.url.database, os.O_CREAT | os.O_RDWR, 0o600))
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    try:
        hub_id = _bring_up_to_date(engine, config)
    except (sa.exc.DatabaseError, CommandError) as error:
        engine.dispose()
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"the catalog {engine.url.render_as_string()} cannot be used: {cause}",
            remedy="It may be damaged, or made by a newer version of Sendense: upgrade, or restore it with "
            "`sendense repository restore-catalog DIR`.",
        ) from error
    return Catalog(engine, hub_id)


def _bring_up_to_date(engine: sa.Engine, config: Config) -> str:
    """Makes the tables what they are now; the hub's ID."""
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        hub_id = connection.scalar(sa.select(schema.hub.c.hub_id))
        if hub_id is None:
            hub_id = str(uuid.uuid4())
            connection.execute(schema.hub.insert().values(hub_id=hub_id))
    return str(hub_id)


def _set_up_sqlite(connection: object, _record: object) -> None:
    # Python's driver would begin a transaction only at the first change, and none around changes of tables:
    # what was read before would not belong to it, and half a migration would stay.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # a restore point that was reported complete stays complete
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
