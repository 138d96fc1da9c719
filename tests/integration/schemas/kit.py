# SPDX-License-Identifier: Apache-2.0
"""Databases as each migration left them, as SQL text with a row in each table.

`python -m tests.integration.schemas.kit` writes the text of revisions that have none yet. What is there is
never written again: a database of that form may be anywhere.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import sendense_credentials.catalog
import sendense_hub.catalog

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Database:
    """One kind of them."""

    name: str
    migrations: Path

    @property
    def _config(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(self.migrations).replace("%", "%%"))
        return config

    def revisions(self) -> list[str]:
        """The oldest first."""
        scripts = ScriptDirectory.from_config(self._config)
        return [script.revision for script in scripts.walk_revisions()][::-1]

    def text_file(self, revision: str) -> Path:
        return _HERE / self.name / f"{revision}.sql"

    def make(self, revision: str, file: Path) -> None:
        """An empty database of this revision."""
        engine = sa.create_engine(f"sqlite:///{file}")
        config = self._config
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        engine.dispose()


DATABASES = [
    Database(name, Path(str(package.__file__)).parent / "migrations")
    for name, package in (("hub", sendense_hub.catalog), ("credentials", sendense_credentials.catalog))
]


@contextlib.contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def schema(connection: sqlite3.Connection) -> dict[str, str]:
    """Tables and indexes, however their text is folded."""
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {row["name"]: " ".join(row["sql"].split()) for row in rows}


def rows(connection: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    """All, by table."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        table["name"]: [dict(row) for row in connection.execute(f'SELECT * FROM "{table["name"]}"')]
        for table in tables
    }


def fill(connection: sqlite3.Connection) -> None:
    """One row in each table that has none, told apart by its values; references hold."""
    for table, found in rows(connection).items():
        if found:
            continue
        points_at = {
            row["from"]: f"{row['table']}.{row['to']}"
            for row in connection.execute(f'PRAGMA foreign_key_list("{table}")')
        }
        made = {
            row["name"]: _value(row["type"], points_at.get(row["name"], f"{table}.{row['name']}"))
            for row in connection.execute(f'PRAGMA table_info("{table}")')
        }
        places = ", ".join("?" * len(made))
        connection.execute(f'INSERT INTO "{table}" VALUES ({places})', list(made.values()))
    connection.commit()
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def _value(kind: str, where: str) -> Any:
    if kind == "BLOB":
        return b"\x00" + where.encode()
    if kind == "JSON":
        return f'["{where}"]'
    if kind.startswith("VARCHAR"):
        return f"{where} é"
    number = sum(where.encode())
    return number + 0.5 if kind == "FLOAT" else number


def write_missing() -> list[Path]:
    """Texts of revisions that have none."""
    written = []
    for database in DATABASES:
        for revision in database.revisions():
            text = database.text_file(revision)
            if text.exists():
                continue
            made = text.with_suffix(".sqlite")
            database.make(revision, made)
            with opened(made) as connection:
                fill(connection)
                lines = [line for line in connection.iterdump() if "sqlite_sequence" not in line]
            made.unlink()
            text.write_text("-- SPDX-License-Identifier: Apache-2.0\n" + "\n".join(lines) + "\n")
            written.append(text)
    return written


if __name__ == "__main__":
    for path in write_missing():
        sys.stdout.write(f"{path}\n")
