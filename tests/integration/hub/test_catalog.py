# SPDX-License-Identifier: Apache-2.0
"""The catalog on a real SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tests.integration.hub.kit import new_job

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, jobs, open_catalog
from sendense_hub.catalog.jobs import Origin
from sendense_hub.catalog.schema import metadata
from sendense_hub.domain.job_rules import ACTIVE, ENDED
from sendense_hub.domain.times import to_timestamp

pytestmark = pytest.mark.integration


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    async with open_catalog(f"sqlite:///{tmp_path / 'c.sqlite'}") as opened:
        yield opened


async def keep(catalog: Catalog, job: pb.Job, request_id: str = "") -> pb.Job:
    origin = Origin(request_id or str(uuid.uuid4()), "00-aa-bb-01")
    await catalog.run(lambda connection: jobs.insert(connection, job, origin))
    return job


async def test_it_is_private_durable_and_keeps_foreign_keys(catalog: Catalog, tmp_path: Path):
    def pragmas(connection: sa.Connection) -> list[object]:
        return [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]

    assert await catalog.run(pragmas) == ["wal", 2, 1, 10_000]
    assert (tmp_path / "c.sqlite").stat().st_mode & 0o777 == 0o600
    orphan = sa.text("insert into job_warnings values ('none', 0, '', '', 0, 0)")
    with pytest.raises(sa.exc.IntegrityError):
        await catalog.run(lambda connection: connection.execute(orphan))


async def test_the_migrations_give_the_tables_of_the_schema(catalog: Catalog):
    def differences(connection: sa.Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert await catalog.run(differences) == []

    def indexes(connection: sa.Connection) -> dict[str, str]:
        rows = connection.execute(
            sa.text("select name, sql from sqlite_master where type = 'index' and sql is not null")
        ).all()
        return {str(name): str(sql) for name, sql in rows}

    migrated = await catalog.run(indexes)
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        declared = indexes(connection)
    engine.dispose()

    def plain(found: dict[str, str]) -> dict[str, str]:
        return {name: " ".join(sql.split()) for name, sql in found.items()}

    assert plain(migrated) == plain(declared), "also the conditions of partial indexes"


async def test_opening_again_changes_nothing(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    async with open_catalog(url) as first:
        job = await keep(first, new_job())
    async with open_catalog(url) as second:
        assert second.hub_id == first.hub_id
        assert await second.run(lambda connection: jobs.get(connection, job.job_id)) == job


async def test_a_migration_that_is_interrupted_leaves_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    upgrade = command.upgrade

    def interrupted(*arguments: object) -> None:
        upgrade(*arguments)  # type: ignore[arg-type]
        raise KeyError("forced")

    monkeypatch.setattr(command, "upgrade", interrupted)
    with pytest.raises(KeyError):
        async with open_catalog(url):
            pass
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == []
    connection.close()
    monkeypatch.undo()
    async with open_catalog(url) as opened:
        assert opened.hub_id


async def test_a_transaction_that_raises_leaves_nothing(catalog: Catalog):
    job = new_job()

    def half(connection: sa.Connection) -> None:
        jobs.insert(connection, job, Origin("r", ""))
        raise KeyError("forced")

    with pytest.raises(KeyError):
        await catalog.run(half)
    assert await catalog.run(lambda connection: jobs.listed(connection, limit=9)) == []


async def test_a_locked_database_is_told_as_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sendense_hub.catalog.database._BUSY_TIMEOUT_MS", 20)
    async with open_catalog(f"sqlite:///{tmp_path / 'c.sqlite'}") as catalog:
        other = sqlite3.connect(tmp_path / "c.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SendenseError, match="locked") as locked:
            await keep(catalog, new_job())
        assert (locked.value.reason, locked.value.retryable) == (Reason.REASON_SERVICE_UNAVAILABLE, True)
        other.execute("ROLLBACK")
        other.close()
        await keep(catalog, new_job())


async def test_a_caller_that_is_cancelled_does_not_stop_its_transaction(catalog: Catalog):
    began, go_on = threading.Event(), threading.Event()
    job = new_job()

    def slow(connection: sa.Connection) -> None:
        began.set()
        go_on.wait(20)
        jobs.insert(connection, job, Origin("r", ""))

    task = asyncio.create_task(catalog.run(slow))
    await asyncio.to_thread(began.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await catalog.run(lambda connection: jobs.get(connection, job.job_id)) == job


# --- jobs ---


async def test_a_vm_has_one_active_job(catalog: Catalog):
    first = await keep(catalog, new_job())
    with pytest.raises(SendenseError) as busy:
        await keep(catalog, new_job())
    assert busy.value.reason == Reason.REASON_VM_BUSY
    assert busy.value.metadata["job"] == first.job_id
    await keep(catalog, new_job(vm_instance_uuid="another"))
    await keep(catalog, new_job(vcenter_name="another"))
    await keep(catalog, new_job(state=pb.JOB_STATE_FAILED))
    first.state = pb.JOB_STATE_SUCCEEDED
    assert await catalog.run(lambda connection: jobs.write(connection, first))
    await keep(catalog, new_job())


async def test_two_hubs_at_one_moment_give_a_vm_one_job(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'c.sqlite'}"
    async with open_catalog(url) as one, open_catalog(url) as two:
        for number in range(20):
            machine = f"vm-{number}"
            outcomes = await asyncio.gather(
                *(keep(each, new_job(vm_instance_uuid=machine)) for each in (one, two, one, two)),
                return_exceptions=True,
            )
            won = [each for each in outcomes if isinstance(each, pb.Job)]
            lost = [each.reason for each in outcomes if isinstance(each, SendenseError)]
            assert (len(won), lost) == (1, [Reason.REASON_VM_BUSY] * 3), outcomes


async def test_the_database_itself_refuses_a_second_active_job(catalog: Catalog):
    job = await keep(catalog, new_job())
    columns = {"job_id": "'x'", "request_id": "'y'"}
    names = [column.name for column in metadata.tables["jobs"].columns]
    again = sa.text(
        f"insert into jobs ({', '.join(names)}) "
        f"select {', '.join(columns.get(name, name) for name in names)} from jobs"
    )
    with pytest.raises(sa.exc.IntegrityError):
        await catalog.run(lambda connection: connection.execute(again))
    assert job.state in ACTIVE


async def test_a_request_makes_one_job(catalog: Catalog):
    job = await keep(catalog, new_job(), "request")
    assert await catalog.run(lambda connection: jobs.by_request(connection, "request")) == job
    assert await catalog.run(lambda connection: jobs.by_request(connection, "other")) is None
    with pytest.raises(sa.exc.IntegrityError):
        await keep(catalog, new_job(vm_instance_uuid="another"), "request")
    assert await catalog.run(lambda connection: jobs.traceparent(connection, job.job_id)) == "00-aa-bb-01"


async def test_a_job_comes_back_as_it_was_written(catalog: Catalog):
    job = await keep(catalog, new_job())
    job.state, job.phase, job.attempt = pb.JOB_STATE_FAILED, pb.JOB_PHASE_DONE, 2
    job.ended_in_phase, job.quiesce_result, job.point_id = pb.JOB_PHASE_COPY, "quiesced", "p"
    job.start_time.GetCurrentTime()
    job.end_time.GetCurrentTime()
    for moment in (job.start_time, job.end_time):
        moment.nanos -= moment.nanos % 1000
    job.failure.reason = Reason.REASON_SNAPSHOT_LOST
    job.failure.metadata["vm"] = "wéb"
    for number in (2000, 2001):
        job.disks.add(
            key=number,
            label=f"Hard disk {number}",
            capacity_bytes=2**62,
            state=pb.DISK_STATE_COPIED,
            mode="full",
            mode_reason="first_backup",
            planned_read_bytes=1,
            changed_bytes=2,
            read_bytes=3,
            copied_bytes=4,
            zero_bytes=5,
            wire_bytes=6,
            seconds=0.5,
        )
        job.warnings.add(code="c", message="m", disk_key=number, time=to_timestamp(number))
    assert await catalog.run(lambda connection: jobs.write(connection, job))
    job.create_time.nanos -= job.create_time.nanos % 1000
    assert await catalog.run(lambda connection: jobs.get(connection, job.job_id)) == job


@pytest.mark.parametrize("ended", sorted(ENDED))
async def test_an_ended_job_never_changes(catalog: Catalog, ended: pb.JobState.ValueType):
    job = await keep(catalog, new_job(state=ended))
    job.state = pb.JOB_STATE_RUNNING
    job.warnings.add(code="late")
    assert not await catalog.run(lambda connection: jobs.write(connection, job))
    stored = await catalog.run(lambda connection: jobs.get(connection, job.job_id))
    assert (stored.state, len(stored.warnings)) == (ended, 0)


async def test_a_prefix_names_a_job_if_it_is_long_enough_and_unique(catalog: Catalog):
    await keep(catalog, new_job(job_id="abcdef01-x", vm_instance_uuid="1"))
    await keep(catalog, new_job(job_id="abcdef02-x", vm_instance_uuid="2"))
    found = await catalog.run(lambda connection: jobs.get(connection, "abcdef02"))
    assert found.job_id == "abcdef02-x"
    for wanted, words in (
        ("abcdef", "several jobs"),
        ("abcde", "no job"),
        ("a_cdef01", "no job"),
        ("%", "no job"),
    ):
        with pytest.raises(SendenseError, match=words) as missing:
            await catalog.run(lambda connection, wanted=wanted: jobs.get(connection, wanted))  # type: ignore[misc]
        assert missing.value.reason == Reason.REASON_JOB_NOT_FOUND


async def test_pages_show_each_job_once_newest_first_also_at_one_moment(catalog: Catalog):
    kept = []
    for number in range(7):
        job = new_job(vm_instance_uuid=str(number))
        job.create_time.CopyFrom(to_timestamp(1_000_000 + number // 3) or job.create_time)
        kept.append(await keep(catalog, job))
    seen: list[pb.Job] = []
    after: tuple[int, str] | None = None
    for _ in range(4):
        page = await catalog.run(
            lambda connection, after=after: jobs.listed(connection, limit=2, after=after)  # type: ignore[misc]
        )
        seen += page
        after = (page[-1].create_time.ToMicroseconds(), page[-1].job_id)
    assert [job.job_id for job in seen] == [
        job.job_id for job in sorted(kept, key=lambda job: (-job.create_time.ToMicroseconds(), job.job_id))
    ]
