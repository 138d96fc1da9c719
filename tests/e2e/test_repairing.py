# SPDX-License-Identifier: Apache-2.0
"""`sendense doctor --repair`: what was left goes, what is not ours stays, and both are said."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import uuid
from pathlib import Path

import pytest
from tests.e2e.kit import MIB, World, data, until, world

pytestmark = pytest.mark.e2e


def test_what_was_left_goes_and_what_is_not_ours_stays(short_tmp: Path) -> None:
    with world(short_tmp) as here:
        lab = here.lab()
        lab.add_vm("web", [4 * MIB])
        lab.write("web", 2000, 0, data(MIB, "web"))
        job = here.back_up("web")
        assert here.ask("doctor", "--repair")["acts"] == []
        stray, half = _leave(here, job["job_id"])
        _snapshot(lab, "web", hub_id=_hub_id(here), job_id=job["job_id"])
        _snapshot(lab, "web", hub_id=str(uuid.uuid4()), job_id=job["job_id"])
        foreign = half.with_name(str(uuid.uuid4()))
        foreign.mkdir()
        (foreign / "disk-2000.qcow2").touch()
        try:
            answer = here.ask("doctor", "--repair")
        finally:
            subprocess.run(["kill", "-9", str(stray)], check=False, capture_output=True)
        told = {act["what"]: act["outcome"].removeprefix("ACT_OUTCOME_") for act in answer["acts"]}
        assert told == {
            "stray_export": "DONE",
            "stale_socket": "DONE",
            "half_point": "DONE",
            "snapshot": "DONE",
            "clean_up": "DONE",
            "unknown_directory": "REPORTED",
        }, answer["acts"]
        assert answer["checks"]
        assert not half.exists()
        until(lambda: not Path(f"/proc/{stray}").exists() or not Path(f"/proc/{stray}/cmdline").read_bytes(),
              "the process is gone")  # fmt: skip
        assert len(lab.state("web")["snapshots"]) == 1, "another hub's stays"
        assert foreign.exists()
        here.assert_restores(job, lab)
        words = here.run("doctor", "--repair").stdout
        assert "unknown_directory" in words
        assert "left" in words


def _leave(here: World, job_id: str) -> tuple[int, Path]:
    """A qemu-nbd without a hub, and a half point of an ended job that no row speaks of."""
    (point,) = here.repository.glob("*/*/*/point.json")
    half = point.parent.with_name(str(uuid.uuid4()))
    half.mkdir()
    layer = half / "disk-2000.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(layer), "4M"], check=True)
    (half / ".writing").write_text(json.dumps({"hub_id": _hub_id(here), "job_id": job_id}))
    pid_file = here.directory / "stray.pid"
    subprocess.run(
        ["qemu-nbd", "--fork", "--persistent", "--format=qcow2", f"--pid-file={pid_file}",
         f"--socket={here.installation.hub.exports_dir / 'stray.sock'}", str(layer)],
        check=True,
    )  # fmt: skip
    return int(pid_file.read_text()), half


def _hub_id(here: World) -> str:
    with sqlite3.connect(here.installation.hub.state / "catalog.sqlite") as connection:
        (hub_id,) = connection.execute("select hub_id from hub").fetchone()
    connection.close()
    return str(hub_id)


def _snapshot(lab, vm: str, *, hub_id: str, job_id: str) -> None:
    words = f"Sendense backup; remove only by Sendense. hub={hub_id} job={job_id}"
    lab.command("take_snapshot", vm=vm, name="sendense-left", description=words)
