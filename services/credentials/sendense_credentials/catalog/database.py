# SPDX-License-Identifier: Apache-2.0
"""Opening the database and running transactions on it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
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
from sendense_common.paths import private_dir

T = TypeVar("T")
Connection = sa.Connection
"""An open transaction."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_TIMEOUT_MS = 10_000


class Catalog:
    """The database and the one thread that talks to it."""

    def __init__(self, engine: sa.Engine) -> None:
        """Made by `open_catalog`."""
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalog")

    async def run(self, transaction: Callable[[sa.Connection], T]) -> T:
        """Runs `transaction`; what it did is on disk when this returns, and undone when it raises.

        A caller that is cancelled does not stop it half way.
        """

        def whole() -> T:
            with self._engine.begin() as connection:
                return transaction(connection)

        asking = contextvars.copy_context()  # who asks is known in the transaction too
        running = asyncio.get_running_loop().run_in_executor(self._thread, asking.run, whole)
        # A caller that hung up wants to hear of no failure; asyncio would log it as one that nobody heard of.
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(running)

    async def forget_old_pages(self) -> None:
        """Empties the write-ahead log, which has what pages held before; not while somebody reads it."""

        def checkpoint() -> None:
            with self._engine.connect() as connection:
                driver = connection.connection.cursor()
                driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                driver.close()

        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, checkpoint))

    def close(self) -> None:
        """Waits for what runs."""
        self._thread.shutdown()
        self._engine.dispose()


@contextlib.asynccontextmanager
async def open_catalog(file: Path) -> AsyncIterator[Catalog]:
    """Opens the database (made with mode 0600) and brings its tables up to date.

    Raises:
        SendenseError: INTERNAL when it cannot be opened, is none, or was made by a newer version.
    """
    catalog = await asyncio.to_thread(_open, file)
    try:
        yield catalog
    finally:
        await asyncio.to_thread(catalog.close)


def _open(file: Path) -> Catalog:
    private_dir(file.parent)
    file.touch(mode=0o600)
    file.chmod(0o600)
    # hide_parameters: no value that is on its way into a table shows in an error.
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(file)), hide_parameters=True)
    sa.event.listen(engine, "connect", _set_up)
    sa.event.listen(engine, "begin", _begin)
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (sa.exc.DatabaseError, CommandError) as error:
        engine.dispose()
        cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"the database {file} cannot be used: {cause}",
            remedy="It may be damaged, or made by a newer version of Sendense: restore it, or upgrade.",
        ) from error
    return Catalog(engine)


def _set_up(connection: object, _record: object) -> None:
    # SQLAlchemy's driver would begin a transaction only at the first write; see _begin.
    connection.isolation_level = None  # type: ignore[attr-defined]
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",  # a lease that was used stays used, whatever happens to the power
        "foreign_keys=ON",
        "secure_delete=ON",  # a data key under a former key does not stay in free pages
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    # Takes the write lock at once: what a transaction has read is still true when it writes.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
