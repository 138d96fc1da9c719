# SPDX-License-Identifier: Apache-2.0
"""The catalog is lost: a scan of the repository makes it whole, and tells what is not as it should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.hub.kit import SSH_KEY, WITHIN_S, Hub, World, files_of, hub_of, lose_catalog, until
from tests.integration.hub.scripted_agent import (
    MIB,
    SITE,
    VCENTER,
    VCENTER_UUID,
    ScriptedJob,
    backup,
    incremental,
    plan_of,
    planned,
)
from tests.integration.hub.test_backups import FIRST, THEN, TWO, digests, sha256
from tests.integration.hub.test_delete import LAST, chain, delete
from tests.integration.repository.kit import noise

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2, vcenter_service_pb2
from sendense.hub.v1 import repository_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import points, repositories, sites, vcenters
from sendense_hub.jobs.repository_scan import RepositoryScan
from sendense_hub.repository import open_repository
from sendense_hub.repository import scan as scanning
from sendense_hub.repository.scan import FindingKind
from sendense_hub.rpc.repository_service import RepositoryService

pytestmark = pytest.mark.integration


async def scan(hub: Hub, name: str = "") -> tuple[pb.ScanSummary, list[pb.ScanFinding]]:
    findings: list[pb.ScanFinding] = []
    service = RepositoryService(hub.workshop)
    request = pb.ScanRepositoryRequest(name=name)
    async for report in service.ScanRepository(request, None):  # type: ignore[arg-type]
        findings += report.findings
    assert report.done
    assert report.looked_at_count == report.total_count
    assert report.summary.findings_count == len(findings)
    return report.summary, findings


def kinds(findings: list[pb.ScanFinding]) -> dict[str, int]:
    names = (pb.ScanFindingKind.Name(each.kind) for each in findings)
    return dict(Counter(name.removeprefix("SCAN_FINDING_KIND_").lower() for name in names))


@contextlib.asynccontextmanager
async def new_hub(world: World, *, register: bool = True) -> AsyncIterator[Hub]:
    lose_catalog(world)
    async with hub_of(world, register=register) as hub:
        yield hub


def fingerprints(root: Path) -> dict[str, Any]:
    """Everything about the files of a repository that a scan must leave as it is."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (facts.st_mode, facts.st_mtime_ns, facts.st_ino, content)
    return found


async def test_a_lost_catalog_is_made_whole_and_the_next_incremental_goes_on(world: World):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST, TWO)
        await hub.run()
        hub.agent.script = backup(THEN, plan_of(incremental(2000), planned(2001)))
        await hub.run()
        before = await hub.rows()
        assert len(before) == 2
    async with new_hub(world) as hub:
        assert await hub.rows() == []
        files = fingerprints(hub.repository.root)
        summary, findings = await scan(hub)
        assert (summary.points_count, summary.added_count, kinds(findings)) == (2, 2, {})
        assert [(each.name, each.known, each.points_count) for each in summary.vcenters] == [
            (VCENTER, True, 2)
        ]
        assert await hub.rows() == before, "every column, as if nothing had been lost"

        again, findings = await scan(hub)
        assert (again.points_count, again.added_count, again.renamed_count, findings) == (2, 0, 0, [])
        assert await hub.rows() == before
        assert fingerprints(hub.repository.root) == files

        newest, oldest = before
        assert await digests(hub, newest.point_id) == {
            2000: sha256(FIRST[2000], THEN[2000]),
            2001: sha256({}),
        }
        hub.agent.script = backup(LAST, plan_of(incremental(2000, "52 aa/9"), incremental(2001)))
        job = await hub.run(job_pb2.BACKUP_MODE_INCREMENTAL)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
        told = {disk.key: disk.change_id for disk in hub.agent.starts[-1].previous_disks}
        assert told == {2000: "52 aa/next", 2001: "52 aa/2001"}, "the change IDs of the scanned points"
        assert await digests(hub, job.point_id) == {
            2000: sha256(FIRST[2000], THEN[2000], LAST[2000]),
            2001: sha256({}),
        }
        with pytest.raises(SendenseError) as refused:
            await delete(hub, oldest.point_id)
        assert refused.value.reason == Reason.REASON_POINT_HAS_DEPENDANTS
        for point_id in (job.point_id, newest.point_id, oldest.point_id):
            assert await delete(hub, point_id) > 0
        await hub.assert_nothing_left()


async def test_only_what_is_missing_is_added(world: World):
    async with hub_of(world) as hub:
        made = await chain(hub)
        before = await hub.rows()
        await hub.catalog.run(lambda connection: points.forget(connection, made[1]))
        summary, findings = await scan(hub)
        assert (summary.points_count, summary.added_count, findings) == (3, 1, [])
        assert await hub.rows() == before


async def test_points_of_all_vcenters_and_hubs_are_taken(world: World):
    """Also of VMs and vCenters that this hub has never seen; nothing is built upon what it does not know."""
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        mine = await hub.run()
        root = hub.repository.root
    other = str(uuid.uuid4())
    copied = root / other / str(uuid.uuid4())
    shutil.copytree(root / VCENTER_UUID, copied.parent)
    (found,) = copied.parent.iterdir()
    found.rename(copied)
    (point,) = copied.iterdir()
    document = json.loads((point / "point.json").read_text())
    new_id = str(uuid.uuid4())
    document |= {
        "vcenter_uuid": other,
        "vm_instance_uuid": copied.name,
        "point_id": new_id,
        "hub_id": "another",
        "vcenter_name": "theirs",
    }
    del document["content_sha256"]
    (point / "point.json").write_text(json.dumps(document))
    point.rename(copied / new_id)
    async with new_hub(world) as hub:
        summary, findings = await scan(hub)
        assert (summary.points_count, summary.added_count) == (2, 2)
        assert len(summary.hub_ids) == 2
        assert "another" in summary.hub_ids
        assert {(each.name, each.known) for each in summary.vcenters} == {(VCENTER, True), ("theirs", False)}
        assert kinds(findings) == {"vcenter_unknown": 1}
        assert "no vCenter here is it" in findings[0].finding
        assert await digests(hub, new_id) == {2000: sha256(FIRST[2000])}
        assert await digests(hub, mine.point_id) == {2000: sha256(FIRST[2000])}


async def test_a_vcenter_that_has_another_name_here_goes_on_under_it(world: World):
    """Its identity is its instance UUID; and the points follow when it is named anew later."""
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
    async with new_hub(world, register=False) as hub:
        summary, findings = await scan(hub)
        assert (summary.added_count, kinds(findings)) == (1, {"vcenter_unknown": 1})
        (point,) = await hub.points()
        assert point.vcenter_name == VCENTER, "the name that it had, for want of another"

        def add(connection: Any) -> None:
            sites.register(connection, SITE, SSH_KEY, "SHA256:x")
            vcenters.add(
                connection,
                vcenter_service_pb2.Vcenter(
                    name="renamed", host="vc.example", port=443, certificate_sha256=bytes(32),
                    credential_id="cred", site_name=SITE,
                ),
            )  # fmt: skip
            vcenters.set_identity(connection, "renamed", VCENTER_UUID)

        await hub.catalog.run(add)
        summary, findings = await scan(hub)
        assert (summary.added_count, summary.renamed_count, findings) == (0, 1, [])
        assert [(list(each.names_then), each.name, each.known) for each in summary.vcenters] == [
            ([VCENTER], "renamed", True)
        ]
        hub.agent.script = backup(THEN, plan_of(incremental()))
        job = await hub.run(job_pb2.BACKUP_MODE_INCREMENTAL, vcenter_name="renamed")
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
        assert {each.vcenter_name for each in await hub.points()} == {"renamed"}
        assert await digests(hub, job.point_id) == {2000: sha256(FIRST[2000], THEN[2000])}


async def test_another_vcenter_of_the_old_name_gets_none_of_the_points(world: World):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
    async with new_hub(world, register=False) as hub:

        def add(connection: Any) -> None:
            sites.register(connection, SITE, SSH_KEY, "SHA256:x")
            vcenters.add(
                connection,
                vcenter_service_pb2.Vcenter(
                    name=VCENTER, host="vc.example", port=443, certificate_sha256=bytes(32),
                    credential_id="cred", site_name=SITE,
                ),
            )  # fmt: skip
            vcenters.set_identity(connection, VCENTER, "9" * 8)

        await hub.catalog.run(add)
        _, findings = await scan(hub)
        assert kinds(findings) == {"vcenter_unknown": 1}
        assert f"{VCENTER} here is another vCenter" in findings[0].finding
        hub.agent.script = backup(FIRST, plan_of(vcenter_uuid="9" * 8))
        job = await hub.run()
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
        assert list(hub.agent.starts[-1].previous_disks) == []


async def test_a_repository_that_moved_and_has_another_name_keeps_its_points(world: World):
    async with hub_of(world) as hub:
        await chain(hub)
        before = await hub.rows()
    async with hub_of(world, register=False) as hub:
        assert hub.repository.name == "default"
        # Bound to the name that it had, as the API does at its start.
        facts = ("default", str(hub.repository.root), hub.repository.repository_id)
        await hub.catalog.run(lambda connection: repositories.bind(connection, *facts))
        moved = hub.repository.root.with_name("moved")
        hub.repository.root.rename(moved)
        elsewhere = await open_repository("second", moved)
        hub.workshop.repositories["second"] = elsewhere  # type: ignore[index]

        # The old name is still given to the hub: is one a copy of the other?
        summary, findings = await scan(hub, "second")
        assert (summary.added_count, summary.renamed_count, kinds(findings)) == (0, 0, {"elsewhere": 3})
        del hub.workshop.repositories["default"]  # type: ignore[attr-defined]
        summary, findings = await scan(hub, "second")
        assert (summary.added_count, summary.renamed_count, findings) == (0, 3, [])
        for row in before:
            row.repository_name = "second"
        assert await hub.rows() == before
        hub.agent.script = backup(THEN, plan_of(incremental()))
        job = await hub.run(job_pb2.BACKUP_MODE_INCREMENTAL, repository_name="second")
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure


# --- what is not as it should be ---


async def test_half_points_foreign_files_and_links_are_told_and_left(world: World, tmp_path: Path):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        good = (await hub.run()).point_id
        machine = hub.repository.point_path((await hub.points())[0].directory).parent
        root = hub.repository.root
        half, gone, made, copy = (machine / str(uuid.uuid4()) for _ in range(4))
        shutil.copytree(machine / good, half)
        (half / "point.json").unlink()
        shutil.copytree(machine / good, gone)
        (gone / "point.json").rename(gone / "point.json.deleting")
        shutil.copytree(machine / good, copy)  # speaks of another place
        made.mkdir()
        (made / "holiday.jpg").write_bytes(b"x")
        (root / "lost+found").mkdir()
        (root / "notes.txt").write_text("x")
        (machine.parent / "README").write_text("x")
        (machine / good / "notes.txt").write_text("x")
        (machine / str(uuid.uuid4())).symlink_to(machine / good)
        unreadable = machine / str(uuid.uuid4())
        shutil.copytree(machine / good, unreadable)
        (unreadable / "point.json").write_text('{"format_version": 99}')
    async with new_hub(world) as hub:
        files = fingerprints(hub.repository.root)
        summary, findings = await scan(hub)
        assert kinds(findings) == {"half_point": 1, "half_deleted": 1, "unreadable": 2, "foreign": 6}
        by_path = {each.path: each for each in findings}
        relative = str(machine.relative_to(root))
        assert by_path[f"{relative}/{half.name}"].kind == pb.SCAN_FINDING_KIND_HALF_POINT
        assert by_path[f"{relative}/{copy.name}"].finding.endswith(f"says that it is {relative}/{good}")
        assert "99" in by_path[f"{relative}/{unreadable.name}"].finding
        assert all(each.remedy for each in findings)
        assert [each.point_id for each in await hub.points()] == [good]
        assert (summary.points_count, summary.added_count) == (1, 1)
        assert fingerprints(hub.repository.root) == files


async def test_damage_and_what_is_built_on_it_are_told_apart(world: World):
    async with hub_of(world) as hub:
        first, second, third = await chain(hub)
        (directory,) = {Path(each.directory).parent for each in await hub.points()}
        machine = hub.repository.root / directory
        ledger = machine / second / "disk-2000.ledger"
        ledger.write_bytes(ledger.read_bytes()[:-1] + b"!")
    async with new_hub(world) as hub:
        _, findings = await scan(hub)
        assert [(each.point_id, pb.ScanFindingKind.Name(each.kind)) for each in findings] == [
            (second, "SCAN_FINDING_KIND_DAMAGED"),
            (third, "SCAN_FINDING_KIND_CHAIN_BROKEN"),
        ]
        assert "not the one that was committed" in findings[0].finding
        assert second in findings[1].finding
        assert {each.point_id for each in await hub.points()} == {first, second, third}, "all are taken"
        shutil.rmtree(machine / first)
        _, findings = await scan(hub)
        assert kinds(findings) == {"damaged": 1, "chain_broken": 1, "missing": 1}
        assert len(await hub.points()) == 3, "a row is never removed silently"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (["rm", "disk-2000.qcow2"], "its layer disk-2000.qcow2 is missing"),
        (["rm", "disk-2000.ledger"], "its ledger disk-2000.ledger is missing"),
        (["truncate", "-s", "50", "disk-2000.qcow2"], "not a QCOW2 file"),
        (["qemu-img", "rebase", "-u", "-b", "", "disk-2000.qcow2"], "on top of 'nothing'"),
        (["qemu-img", "rebase", "-u", "-F", "raw", "-b", "/etc/passwd", "disk-2000.qcow2"], "/etc/passwd"),
        (["qemu-img", "resize", "-q", "disk-2000.qcow2", "+1M"], "bytes on top of"),
        (
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=/tmp/no,data_file_raw=on",
             "disk-2000.qcow2", "1M"],
            "its data is in another file",
        ),
    ],
)  # fmt: skip
async def test_a_layer_or_ledger_that_is_not_what_was_committed_is_told(
    world: World, tmp_path: Path, spoil: list[str], words: str
):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
        hub.agent.script = backup(THEN, plan_of(incremental()))
        point_id = (await hub.run()).point_id
        row = next(each for each in await hub.points() if each.point_id == point_id)
        command = [part.replace("/tmp/no", str(tmp_path / "no")) for part in spoil]
        subprocess.run(command, cwd=hub.repository.point_path(row.directory), check=True)
        await hub.catalog.run(lambda connection: points.forget(connection, point_id))
        _, findings = await scan(hub)
        assert [(each.point_id, pb.ScanFindingKind.Name(each.kind)) for each in findings] == [
            (point_id, "SCAN_FINDING_KIND_DAMAGED")
        ]
        assert words in findings[0].finding
        # The next backup does not build on it, says why, and is complete.
        hub.agent.script = backup(FIRST)
        job = await hub.run()
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
        assert await delete(hub, point_id) >= 0


async def test_a_point_that_is_not_in_the_repository_is_told_and_can_be_forgotten(world: World):
    async with hub_of(world) as hub:
        made = await chain(hub)
        row = next(each for each in await hub.points() if each.point_id == made[-1])
        shutil.rmtree(hub.repository.point_path(row.directory))
        summary, findings = await scan(hub)
        assert [(each.kind, each.point_id) for each in findings] == [(pb.SCAN_FINDING_KIND_MISSING, made[-1])]
        assert f"sendense point delete {made[-1][:8]}" in findings[0].remedy
        assert summary.points_count == 2
        await delete(hub, made[-1])
        assert (await scan(hub))[1] == []


async def test_a_catalog_that_disagrees_with_a_document_is_told(world: World):
    async with hub_of(world) as hub:
        hub.agent.script = backup(FIRST)
        await hub.run()
        (row,) = await hub.points()
        row.disks[0].change_id = "52 aa/other"
        await hub.catalog.run(lambda connection: points.complete(connection, row))
        _, findings = await scan(hub)
        assert kinds(findings) == {"different": 1}
        assert "change_id of disk 2000" in findings[0].finding


async def test_a_repository_that_goes_away_meanwhile_has_lost_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    async with hub_of(world) as hub:
        await chain(hub)
        root = hub.repository.root

        def unmounted(*_: Any) -> Any:
            root.rename(root.with_name("away"))
            root.mkdir()
            return [], []

        monkeypatch.setattr(scanning, "machines", unmounted)
        with pytest.raises(SendenseError) as gone:
            await scan(hub)
        assert gone.value.reason == Reason.REASON_REPOSITORY_UNAVAILABLE
        assert len(await hub.points()) == 3


# --- beside what runs ---


async def test_points_that_are_written_or_deleted_now_are_left_alone(world: World):
    async with hub_of(world) as hub:
        made = await chain(hub)

        async def halfway(job: ScriptedJob) -> None:
            (export,) = await job.snapshot_and_plan(plan_of(incremental()))
            await job.copy(export, {0: noise(8, MIB)})
            await job.hear("cancel")

        hub.agent.script = halfway
        job, task = await hub.begin()
        await until(
            lambda: len(hub.agent.jobs) == 4 and hub.agent.job.count("exports"), "the point is being written"
        )
        before = await hub.rows()
        summary, findings = await scan(hub)
        assert (summary.points_count, summary.added_count, summary.busy_count, findings) == (3, 0, 1, [])
        assert await hub.rows() == before
        await hub.catalog.run(lambda connection: points.set_deleting(connection, made[2]))
        summary, findings = await scan(hub)
        assert (summary.points_count, summary.busy_count, findings) == (2, 2, [])
        await hub.workshop.board.cancel(job.job_id)
        await task


async def test_a_point_whose_deletion_ends_during_the_scan_does_not_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    async with hub_of(world) as hub:
        made = await chain(hub)
        real = scanning.machine

        def slow(*arguments: Any) -> Any:
            found = real(*arguments)
            # All is read; now it goes, and its row too.
            shutil.rmtree(hub.repository.root / next(each for each in found.points if made[2] in each))
            return found

        monkeypatch.setattr(scanning, "machine", slow)
        await hub.catalog.run(lambda connection: points.forget(connection, made[2]))
        summary, findings = await scan(hub)
        assert (summary.points_count, summary.added_count, findings) == (2, 0, [])
        assert made[2] not in {each.point_id for each in await hub.rows()}


async def test_a_point_whose_row_goes_while_the_scan_still_sees_its_mark_does_not_come_back(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    async with hub_of(world) as hub:
        made = await chain(hub)
        real = RepositoryScan._still_here
        with contextlib.ExitStack() as deleting:
            deleting.enter_context(hub.workshop.locks.deleting(made[2]))
            loop = asyncio.get_running_loop()

            def seen(scan: RepositoryScan, *arguments: Any) -> Any:
                """It ends when the marks were looked at, and before the rows are."""
                found = real(scan, *arguments)
                forget = hub.catalog.run(lambda connection: points.forget(connection, made[2]))
                asyncio.run_coroutine_threadsafe(forget, loop).result(WITHIN_S)
                loop.call_soon_threadsafe(deleting.close)
                return found

            monkeypatch.setattr(RepositoryScan, "_still_here", seen)
            summary, findings = await scan(hub)
        assert (summary.points_count, summary.added_count, summary.busy_count, findings) == (2, 0, 1, [])
        assert made[2] not in {each.point_id for each in await hub.rows()}


async def test_every_kind_of_finding_has_its_words_in_the_contract():
    for kind in FindingKind:
        assert pb.ScanFindingKind.Value(f"SCAN_FINDING_KIND_{kind.name}")


async def test_an_empty_repository_is_shown_and_scanned(hub: Hub):
    shown = await RepositoryService(hub.workshop).GetRepository(pb.GetRepositoryRequest(), None)  # type: ignore[arg-type]
    assert (shown.repository.name, shown.points_count, shown.stored_bytes) == ("default", 0, 0)
    assert not shown.HasField("newest_point_time")
    summary, findings = await scan(hub)
    assert (summary, findings) == (pb.ScanSummary(), [])
    assert files_of(hub.repository) == []


async def test_a_repository_is_shown_with_its_points_and_chains(hub: Hub):
    await chain(hub)
    hub.agent.script = backup(FIRST, TWO)
    job = await hub.run(job_pb2.BACKUP_MODE_FULL)
    shown = await RepositoryService(hub.workshop).GetRepository(pb.GetRepositoryRequest(), None)  # type: ignore[arg-type]
    assert (shown.points_count, shown.chains_count, shown.virtual_machines_count) == (4, 3, 1)
    rows = await hub.points()
    assert shown.stored_bytes == sum(disk.stored_bytes for row in rows for disk in row.disks) > 0
    newest = next(row for row in rows if row.point_id == job.point_id)
    assert shown.newest_point_time == newest.complete_time
    with pytest.raises(SendenseError) as unknown:
        await scan(hub, "nowhere")
    assert unknown.value.reason == Reason.REASON_REPOSITORY_NOT_FOUND
