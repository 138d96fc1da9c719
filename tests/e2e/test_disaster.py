# SPDX-License-Identifier: Apache-2.0
"""An installation that loses its catalog: scanned, gone on with, restored from a copy, read without us."""

from __future__ import annotations

import datetime
import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.kit import MIB, PASSWORD, USER, World, data, until, world
from tests.integration.docs.page import commands, run

pytestmark = pytest.mark.e2e

_NAME = "web01"


@pytest.fixture
def copying_world(tmp_path: Path) -> Iterator[World]:
    """Copies its catalog every few seconds."""
    with world(tmp_path / "w", environment={"SENDENSE_CATALOG_COPY_HOURS": "0.001"}) as made:
        yield made


def lose_catalog(made: World) -> None:
    for name in ("catalog.sqlite", "dbos.sqlite"):
        for path in made.installation.hub.state.glob(f"{name}*"):
            path.unlink()


def newest_copy(made: World) -> Path:
    return max(made.repository.glob("hub-catalogs/*/*.sqlite"), key=lambda path: path.name)


def jobs_in(copy: Path) -> set[str]:
    connection = sqlite3.connect(copy)
    try:
        return {job for (job,) in connection.execute("select job_id from jobs where end_time_us is not null")}
    finally:
        connection.close()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.timeout(400)
def test_a_lost_catalog_costs_no_point_and_no_full(copying_world: World, tmp_path: Path) -> None:
    lab = copying_world.lab()
    keys = lab.add_vm(_NAME, [48 * MIB, 16 * MIB]).disks
    frozen: dict[str, dict[int, str]] = {}

    def back_up(seed: str, *options: str) -> dict[str, object]:
        for key in keys:
            lab.write(_NAME, key, 3 * MIB, data(2 * MIB, (seed, key)))
        job = copying_world.back_up(_NAME, *options)
        frozen[str(job["point_id"])] = {key: digest(lab.newest_frozen(_NAME, key)) for key in keys}
        return job

    back_up("first")
    second = back_up("second")
    before = copying_world.ask("point", "list")["points"]

    # Everything of the hub is gone but its host key; the vCenter gets another name in the new catalog.
    assert copying_world.stop() == 0
    lose_catalog(copying_world)
    copying_world.start()
    assert copying_world.ask("point", "list")["points"] == []
    copying_world.ask("vcenter", "add", "renamed", "--address", lab.address, "--username", USER,
                    "--password-stdin", "--ca-file", str(lab.ca_file), secret=PASSWORD + "\n")  # fmt: skip
    copying_world.ask("vcenter", "test", "renamed")
    scanned = copying_world.ask("repository", "scan")
    assert (scanned["points_count"], scanned["added_count"], scanned["findings"]) == ("2", "2", [])
    assert [(each["name"], each["names_then"]) for each in scanned["vcenters"]] == [("renamed", ["lab"])]
    after = copying_world.ask("point", "list")["points"]
    assert after == [{**point, "vcenter_name": "renamed"} for point in before]

    third = back_up("third", "--mode", "incremental")
    assert {disk["mode"] for disk in third["disks"]} == {"incremental"}  # type: ignore[attr-defined]
    for point_id, digests in frozen.items():
        verified = copying_world.ask("point", "verify", point_id)
        assert {disk["key"]: disk["sha256"] for disk in verified["disks"]} == digests
    copying_world.assert_nothing_left((lab, _NAME))

    # The copy of the catalog, from which all comes back at once; no password is in the repository.
    until(lambda: third["job_id"] in jobs_in(newest_copy(copying_world)), "the job is in a copy")
    assert copying_world.stop() == 0
    for path in copying_world.repository.rglob("*"):
        if path.is_file() and path.suffix != ".qcow2":
            assert PASSWORD.strip().encode() not in path.read_bytes(), path
    lose_catalog(copying_world)
    restored = copying_world.ask("repository", "restore-catalog", str(newest_copy(copying_world)))
    assert restored["ended_jobs"] == []
    copying_world.start()
    assert copying_world.job(str(third["job_id"]))["state"] == "JOB_STATE_SUCCEEDED"
    assert copying_world.ask("repository", "scan")["added_count"] == "0"

    # Nothing but the repository: the page's commands, with everything stopped.
    documents = copying_world.ask("point", "show", str(second["point_id"]))
    moment = datetime.datetime.fromisoformat(documents["snapshot_time"])
    assert copying_world.stop() == 0
    script = "".join(commands("docs/disaster-recovery.md", "Nothing but the repository"))
    later = f"{moment + datetime.timedelta(milliseconds=1):%Y-%m-%dT%H:%M:%S.%f}"
    for number, (when, point_id) in enumerate(
        ((later, str(second["point_id"])), ("2099-01-01T00:00:00", str(third["point_id"])))
    ):
        out = tmp_path / f"out-{number}"
        out.mkdir()
        done = run(script, REPO=copying_world.repository, VM=_NAME, MOMENT=when, OUT=out)
        assert done.returncode == 0, done.stdout + done.stderr
        written = {key: digest(out / f"disk-{key}.raw") for key in keys}
        assert written == frozen[str(point_id)]
