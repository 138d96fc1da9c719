# SPDX-License-Identifier: Apache-2.0
"""A database of any version that there was is brought up to date, and nothing in it is lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from tests.integration.schemas.kit import DATABASES, Database, opened, rows, schema

import sendense_credentials.catalog
import sendense_hub.catalog
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

EVERY = [
    pytest.param(database, revision, id=f"{database.name}-{revision}")
    for database in DATABASES
    for revision in database.revisions()
]


async def bring_up_to_date(database: Database, file: Path) -> None:
    """As the service does when it starts."""
    if database.name == "hub":
        async with sendense_hub.catalog.open_catalog(f"sqlite:///{file}"):
            return
    async with sendense_credentials.catalog.open_catalog(file):
        return


def load(database: Database, revision: str, file: Path) -> None:
    with opened(file) as connection:
        connection.executescript(database.text_file(revision).read_text())


@pytest.mark.parametrize("database", DATABASES, ids=lambda database: database.name)
def test_there_is_a_database_of_every_revision(database: Database):
    kept = sorted(path.stem for path in database.text_file("0001").parent.glob("*.sql"))
    assert kept == sorted(database.revisions()), (
        "keep one of the new revision: .venv/bin/python -m tests.integration.schemas.kit"
    )


@pytest.mark.parametrize(("database", "revision"), EVERY)
def test_a_migration_that_was_released_is_not_changed(database: Database, revision: str, tmp_path: Path):
    load(database, revision, tmp_path / "then.sqlite")
    database.make(revision, tmp_path / "now.sqlite")
    with opened(tmp_path / "then.sqlite") as then, opened(tmp_path / "now.sqlite") as now:
        assert schema(now) == schema(then), "make a new migration instead"
        assert all(rows(then).values()), "each table has a row"


@pytest.mark.parametrize(("database", "revision"), EVERY)
async def test_every_row_is_kept(database: Database, revision: str, tmp_path: Path):
    file = tmp_path / "c.sqlite"
    load(database, revision, file)
    with opened(file) as connection:
        before = rows(connection)
    await bring_up_to_date(database, file)
    with opened(file) as connection:
        after, upgraded = rows(connection), schema(connection)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert version == database.revisions()[-1]
    del before["alembic_version"]
    if database.name == "hub" and revision < "0012":
        # The row is damaged: what is dropped is the claim that it was found right, see below.
        before["point_disks"] = [
            row | ({"verify_time_us": None} if "damage" in row else {}) for row in before["point_disks"]
        ]
    for table, old in before.items():
        new = [{name: row[name] for name in old[0] if name in row} for row in after[table]]
        assert new == [{name: row[name] for name in row if name in new[0]} for row in old], table
        assert set(new[0]) == set(old[0]), f"a column of {table} is gone: say here why that loses nothing"
    fresh = tmp_path / "fresh.sqlite"
    database.make("head", fresh)
    with opened(fresh) as connection:
        assert upgraded == schema(connection)


@pytest.mark.parametrize("database", DATABASES, ids=lambda database: database.name)
async def test_a_database_of_a_newer_version_is_refused_untouched(database: Database, tmp_path: Path):
    file = tmp_path / "c.sqlite"
    await bring_up_to_date(database, file)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with opened(file) as connection:
        before = rows(connection)
    with pytest.raises(SendenseError) as refused:
        await bring_up_to_date(database, file)
    assert refused.value.reason == Reason.REASON_INTERNAL
    assert "newer version" in refused.value.remedy
    with opened(file) as connection:
        assert rows(connection) == before


async def test_a_verification_of_what_is_damaged_does_not_count_after_an_upgrade(tmp_path: Path):
    """Earlier versions kept the end of its reading: the damage may have been found meanwhile."""
    hub, file = DATABASES[0], tmp_path / "c.sqlite"
    load(hub, "0011", file)
    layers = [("sound", 1, ""), ("damaged", 1, "sound"), ("above", 1, "damaged"), ("last", 1, "above")]
    layers += [("above", 2, "damaged"), ("damaged", 2, "")]
    with opened(file) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        names = [row["name"] for row in connection.execute("PRAGMA table_info(point_disks)")]
        for point_id, key, parent in layers:
            new = {"point_id": point_id, "key": key, "parent_point_id": parent, "verify_time_us": 9}
            new |= dict.fromkeys(("damage", "damage_time_us", "damage_seen_from"))
            if (point_id, key) == ("damaged", 1):
                new |= {"damage": "it is", "damage_time_us": 5, "damage_seen_from": "last"}
            chosen = ", ".join(f":{name}" if name in new else name for name in names)
            insert = f"INSERT INTO point_disks ({', '.join(names)}) SELECT {chosen} FROM point_disks LIMIT 1"
            connection.execute(insert, new)
        connection.commit()
    await bring_up_to_date(hub, file)
    with opened(file) as connection:
        found = connection.execute("SELECT * FROM point_disks WHERE verify_time_us = 9")
        right = sorted((row["point_id"], row["key"]) for row in found)
        damaged = connection.execute(
            "SELECT point_id, key FROM point_disks WHERE damage = 'it is'"
        ).fetchall()
    assert right == [("above", 2), ("damaged", 2), ("sound", 1)]
    assert [tuple(row) for row in damaged] == [("damaged", 1)]
