# SPDX-License-Identifier: Apache-2.0
"""Copies of the catalog in the repository: whole, made while the hub works, and good for a new start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hub.kit import Api, Hub, World, api_of, hub_of, lose_catalog, until
from tests.integration.hub.scripted_agent import MACHINE_NAME, SITE, VCENTER, backup, incremental, plan_of
from tests.integration.hub.test_backups import FIRST, THEN, digests, sha256
from tests.integration.hub.test_repository_scan import scan

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import point_service_pb2 as points_pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, copies, jobs, points, schema, sites, vcenters
from sendense_hub.jobs.catalog_copier import CatalogCopier
from sendense_hub.jobs.recovery import recover
from sendense_hub.repository import PointWriter, catalog_copies

pytestmark = pytest.mark.integration


def copier(hub: Hub, **changed: float) -> CatalogCopier:
    often = {"at_most_every_s": 0.05, "at_least_every_s": 3600.0, **changed}
    return CatalogCopier(hub.workshop, hub.world.paths.state / "catalog.sqlite", **often)


def copies_in(hub: Hub) -> list[Path]:
    return sorted((hub.repository.root / "hub-catalogs" / hub.catalog.hub_id).glob("*.sqlite"))


def restore(world: World, source: Path, *, works: bool = True) -> dict[str, Any]:
    """The command, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sendense_hub.main", "restore-catalog",
         "--state", str(world.paths.state), str(source)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode == 0) == works, done.stdout + done.stderr
    return dict(json.loads(done.stdout if works else done.stderr.splitlines()[-1]))


async def test_a_copy_holds_every_row_but_the_spans_and_is_private(hub: Hub):
    hub.agent.script = backup(FIRST)
    await hub.run()
    span = schema.spans.insert().values(
        trace_id="t", span_id="s", parent_span_id="", name="n", service="h", start_ns=1, duration_ns=1,
        error="", attributes={},
    )  # fmt: skip
    await hub.catalog.run(lambda connection: connection.execute(span))
    await copier(hub).copy()
    (copy,) = copies_in(hub)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert not (hub.world.paths.state / ".catalog-copy").exists()

    def dump(path: Path) -> tuple[set[str], set[str]]:
        connection = sqlite3.connect(path)
        lines = set(connection.iterdump())
        connection.close()
        spans = {line for line in lines if line.startswith('INSERT INTO "spans"')}
        return lines - spans, spans

    everything, spans = dump(hub.world.paths.state / "catalog.sqlite")
    copied, none = dump(copy)
    assert copied == everything
    assert (len(spans), none) == (1, set())
    copies.check(copy)


async def test_a_copy_is_of_one_moment_while_the_catalog_is_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Rows of one transaction are in it together or not at all."""
    real = copies._copy_rows

    def slowly(*arguments: Any) -> None:
        time.sleep(0.01)  # in its own thread, between two tables
        real(*arguments)

    monkeypatch.setattr(copies, "_copy_rows", slowly)
    stop = asyncio.Event()

    async def keep_writing() -> int:
        count = 0
        while not stop.is_set():
            count += 1
            row = points_pb.RestorePoint(point_id=f"p-{count}", repository_name="r", directory="d")
            row.disks.add(key=1)
            row.disks.add(key=2)
            await hub.catalog.run(lambda connection, row=row: points.complete(connection, row))  # type: ignore[misc]
        return count

    writing = asyncio.create_task(keep_writing())
    source = hub.world.paths.state / "catalog.sqlite"
    seen = set()
    async with asyncio.timeout(60):
        for number in range(5):
            copy = tmp_path / f"{number}.sqlite"
            await asyncio.to_thread(copies.write, source, copy)
            connection = sqlite3.connect(copy)
            (rows,) = connection.execute("select count(*) from restore_points").fetchone()
            (disks,) = connection.execute("select count(*) from point_disks").fetchone()
            connection.close()
            assert disks == 2 * rows
            seen.add(rows)
        stop.set()
        assert await writing > max(seen)
    assert len(seen) > 1, "it was written to meanwhile"


async def test_copies_are_made_at_the_start_and_after_jobs_and_a_few_are_kept(hub: Hub):
    hub.agent.script = backup(FIRST)
    task = asyncio.create_task(copier(hub).run())
    hub.tasks.append(task)
    await until(lambda: len(copies_in(hub)) == 1, "one at the start")
    await asyncio.sleep(0.5)
    assert len(copies_in(hub)) == 1, "nothing has happened"
    job = await hub.run()
    newest = copies_in(hub)[-1:]

    def knows_the_job() -> bool:
        nonlocal newest
        newest = copies_in(hub)[-1:]
        connection = sqlite3.connect(newest[0])
        found = connection.execute("select state from jobs where job_id = ?", [job.job_id]).fetchall()
        connection.close()
        return found == [(job_pb2.JOB_STATE_SUCCEEDED,)]

    await until(knows_the_job, "one after the job")
    for _ in range(5):
        await copier(hub).copy()
    kept = copies_in(hub)
    assert len(kept) in (3, 4), "four when a day has ended meanwhile"
    assert sorted(kept[0].parent.iterdir()) == kept


async def test_a_repository_that_cannot_be_used_gets_its_copy_later_and_nothing_fails(hub: Hub):
    root = hub.repository.root
    root.rename(root.with_name("away"))
    await copier(hub).copy()
    assert not root.exists(), "an unmounted repository gets no file"
    root.with_name("away").rename(root)
    await copier(hub).copy()
    assert len(copies_in(hub)) == 1


async def test_a_restored_catalog_goes_on_with_its_vcenters_jobs_and_points(world: World):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        first = await hub.run()
        await copier(hub).copy()
        hub.agent.script = backup(THEN, plan_of(incremental()))
        second = await hub.run()  # after the copy
        rows = await hub.rows()
        hub_id, root = hub.catalog.hub_id, hub.repository.root
    lose_catalog(world)
    (world.paths.state / "dbos.sqlite").write_bytes(b"a queue")
    done = restore(world, root)
    assert done["hub_id"] == hub_id
    assert [Path(each).name.split(".before-")[0] for each in done["moved_aside"]] == ["dbos.sqlite"]
    async with hub_of(world, register=False) as hub:
        assert hub.catalog.hub_id == hub_id
        assert (await hub.catalog.run(lambda c: vcenters.get(c, VCENTER))).host == "vc.example"
        assert [each.name for each in await hub.catalog.run(sites.listed)] == [SITE]
        assert (await hub.job(first.job_id)).state == job_pb2.JOB_STATE_SUCCEEDED
        with pytest.raises(SendenseError):
            await hub.job(second.job_id)
        summary, findings = await scan(hub)
        assert (summary.added_count, findings) == (1, [])
        assert await hub.rows() == rows
        hub.agent.script = backup({}, plan_of(incremental()))
        third = await hub.run(job_pb2.BACKUP_MODE_INCREMENTAL)
        assert third.state == job_pb2.JOB_STATE_SUCCEEDED, third.failure
        assert await digests(hub, third.point_id) == {2000: sha256(FIRST[2000], THEN[2000])}


async def test_jobs_that_had_not_ended_in_the_copy_are_ended_and_their_points_settled(world: World):
    """Such a job may have completed its point since: going on with it would write into a complete layer."""
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        job, task = await hub.begin()
        await until(lambda: hub.agent.jobs and hub.agent.job.count("exports"), "the point is being written")
        await copier(hub).copy()
        await task
        complete = (await hub.job(job.job_id)).point_id
        files = {path: path.read_bytes() for path in hub.repository.root.rglob("disk-*")}
        assert files
        root = hub.repository.root
    done = restore(world, root)
    assert done["ended_jobs"] == [job.job_id]
    assert len(done["moved_aside"]) >= 1, "the catalog that was there is kept"
    async with hub_of(world, register=False) as hub:
        failed = await hub.job(job.job_id)
        assert (failed.state, failed.failure.reason) == (
            job_pb2.JOB_STATE_FAILED,
            Reason.REASON_HUB_RESTARTED,
        )
        assert [each.job_id for each in await hub.catalog.run(cleanups.listed)] == [job.job_id]
        await recover(hub.workshop)
        assert [(each.point_id, each.state) for each in await hub.rows()] == [
            (complete, points_pb.POINT_STATE_COMPLETE)
        ]
        assert {path: path.read_bytes() for path in root.rglob("disk-*")} == files
        assert await digests(hub, complete) == {2000: sha256(FIRST[2000])}
        assert await hub.catalog.run(lambda c: jobs.listed(c, limit=9, vm=MACHINE_NAME)) == [failed]


async def test_a_complete_point_is_never_written_again(hub: Hub):
    hub.agent.script = backup(FIRST)
    await hub.run()
    (row,) = await hub.points()
    with pytest.raises(SendenseError, match="complete point") as refused:
        await PointWriter.begin(hub.repository, row.vcenter_uuid, row.vm_instance_uuid, row.point_id)
    assert refused.value.reason == Reason.REASON_INTERNAL


async def test_what_is_no_copy_and_a_hub_that_runs_are_refused(world: World, tmp_path: Path):
    async with api_of(world) as api:
        assert isinstance(api, Api)
        root = world.paths.state / "repository"
        await until(lambda: catalog_copies.newest(root), "the API makes one when it starts")
        (copy,) = catalog_copies.newest(root).values()
        assert restore(world, root, works=False)["error"]["reason"] == "SERVICE_UNAVAILABLE"
    before = (world.paths.state / "catalog.sqlite").read_bytes()
    torn = tmp_path / "torn.sqlite"
    torn.write_bytes(copy.read_bytes()[:5000])
    for source in (torn, tmp_path / "none", tmp_path):
        assert restore(world, source, works=False)["error"]["reason"] == "INVALID_REQUEST"
    newer = tmp_path / "newer.sqlite"
    newer.write_bytes(copy.read_bytes())
    with contextlib.closing(sqlite3.connect(newer)) as connection, connection:
        connection.execute("update alembic_version set version_num = '9999'")
    assert "newer version" in restore(world, newer, works=False)["error"]["remedy"]
    (root / "hub-catalogs" / "another").mkdir()
    (root / "hub-catalogs" / "another" / copy.name).write_bytes(copy.read_bytes())
    error = restore(world, root, works=False)["error"]
    assert "2 hubs" in error["message"]
    assert str(copy) in error["remedy"]
    assert (world.paths.state / "catalog.sqlite").read_bytes() == before
    assert restore(world, copy)["taken_from"] == str(copy)
