# SPDX-License-Identifier: Apache-2.0
"""Copies of the database, consistent and made while the service works. Blocks."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_TABLES = {"alembic_version", "credentials", "agents", "leases"}


@contextlib.contextmanager
def copied(database_file: Path) -> Iterator[BinaryIO]:
    """A copy as it is at one moment, open for the block; its private file has no name by then, and so goes.

    Raises:
        SendenseError: SERVICE_UNAVAILABLE when there is no room for it.
    """
    copy = database_file.with_name(f".backup-{secrets.token_hex(8)}.sqlite")
    for left in database_file.parent.glob(".backup-*.sqlite*"):
        left.unlink(missing_ok=True)  # of a service that was killed
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{database_file}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as made,
        ):
            source.backup(made)
            made.execute("PRAGMA journal_mode=DELETE")  # one file is all of it
        opened = copy.open("rb")
    except (sqlite3.Error, OSError) as error:
        raise SendenseError(
            Reason.REASON_SERVICE_UNAVAILABLE,
            f"the database {database_file} cannot be copied: {error}",
            remedy="Check the disk that it is on, and its free space.",
        ) from error
    finally:
        copy.unlink(missing_ok=True)
    with opened:
        yield opened


def check(copy: Path) -> None:
    """Refuses what is no whole copy.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    problem = "it is not there"
    if copy.is_file():
        try:
            with contextlib.closing(sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True)) as opened:
                (word,) = opened.execute("PRAGMA integrity_check(1)").fetchone()
                tables = {row[0] for row in opened.execute("SELECT name FROM sqlite_master")}
                missing = _TABLES - tables
                problem = f"it is damaged: {word}" if word != "ok" else ""
                problem = problem or (f"it has no table {min(missing)}" if missing else "")
        except sqlite3.Error as error:
            problem = str(error)
    if problem:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{copy} is no backup of the credentials database: {problem}",
            remedy="Name a file that `sendense credentials backup --output FILE` made.",
        )
