# SPDX-License-Identifier: Apache-2.0
"""Copies of the catalog, consistent and made while the hub works; and putting one in the place of a lost one.

A copy has everything but the spans, which are many and of no use after a disaster. SQLite only. Blocks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_LEFT_OUT = frozenset({"spans"})


def write(catalog_file: Path, copy: Path) -> None:
    """Writes a copy of the catalog as it is at one moment.

    Args:
        catalog_file: of a hub that may be working.
        copy: the new file, mode 0600; what was there is replaced.

    Raises:
        SendenseError: SERVICE_UNAVAILABLE when one of the two cannot be used.
    """
    copy.unlink(missing_ok=True)
    copy.touch(mode=0o600)
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{copy}", uri=True, isolation_level=None)) as made,
            contextlib.closing(
                sqlite3.connect(f"file:{catalog_file}?mode=ro", uri=True, isolation_level=None)
            ) as source,
        ):
            source.execute("BEGIN")  # one moment for all that is read
            made.execute("PRAGMA synchronous=FULL")
            made.execute("BEGIN")
            for name, statement in source.execute(
                "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type = 'index'"
            ).fetchall():
                made.execute(statement)
                if statement.startswith("CREATE TABLE") and name not in _LEFT_OUT:
                    _copy_rows(source, made, name)
            made.execute("COMMIT")
    except sqlite3.Error as error:
        raise SendenseError(
            Reason.REASON_SERVICE_UNAVAILABLE,
            f"no copy {copy} could be made of the catalog {catalog_file}: {error}",
            remedy="Check the disks that they are on, and their free space.",
        ) from error


def check(copy: Path) -> None:
    """Refuses what is no whole catalog.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    problem = "it is not there"
    if copy.is_file():
        try:
            with contextlib.closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as opened:
                (word,) = opened.execute("PRAGMA integrity_check(1)").fetchone()
                hubs = opened.execute("SELECT hub_id FROM hub").fetchall()
                problem = "" if word == "ok" and len(hubs) == 1 else f"it is damaged: {word}"
        except sqlite3.Error as error:
            problem = str(error)
    if problem:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{copy} is no copy of a catalog: {problem}",
            remedy="Take an older copy; or start with an empty catalog and `sendense repository scan`.",
        )


def _copy_rows(source: sqlite3.Connection, made: sqlite3.Connection, table: str) -> None:
    rows = source.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - a name that the database itself gave
    places = ", ".join("?" * len(rows.description))
    made.executemany(f'INSERT INTO "{table}" VALUES ({places})', rows)  # noqa: S608
