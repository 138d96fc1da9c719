# SPDX-License-Identifier: Apache-2.0
"""Processes that die while a backup runs: it goes on, and every byte is there. `make chaos` does the rest."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import MIB, World, data, until

from sendense_cli.exits import Exit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

_NAME = "hunted"
_COMMANDS = {
    "API": "sendense_hub.api",
    "gateway": "sendense_hub.gateway",
    "nbdkit": "nbdkit",
}


def processes(made: World, command: str) -> list[int]:
    """Of this installation, whose command line has this word."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if made.mark.encode() in environment and any(
            Path(os.fsdecode(word)).name == command for word in words
        ):
            found.append(int(entry.name))
    return found


def copying(made: World, job_id: str, attempt: int, read_bytes: int) -> dict[str, Any] | None:
    """The job, once this attempt of it has read more than so much; the API may just be away."""
    shown = made.run("job", "show", job_id, "--json")
    if shown.returncode == Exit.UNAVAILABLE:
        return None
    job: dict[str, Any] = json.loads(shown.stdout)
    assert job["state"] in {"JOB_STATE_RUNNING", "JOB_STATE_WAITING"}, job
    runs = job["state"] == "JOB_STATE_RUNNING" and job["attempt"] >= attempt
    return job if runs and read_so_far(job) > read_bytes else None


def read_so_far(job: dict[str, Any]) -> int:
    return sum(int(disk["read_bytes"]) for disk in job["disks"])


def test_ff13_whatever_is_killed_in_the_copy_the_same_job_makes_its_point(fresh_world: World) -> None:
    lab = fresh_world.lab()
    (key,) = lab.add_vm(_NAME, [256 * MIB]).disks
    block = data(48 * MIB, "hunted")
    for number in range(4):
        lab.write(_NAME, key, number * 56 * MIB, block)
    lab.command("set", read_seconds=0.8)
    job_id = fresh_world.ask("backup", "start", _NAME)["job_id"]
    attempt, read_bytes = 1, 0
    for command in _COMMANDS.values():
        job = until(
            lambda: copying(fresh_world, job_id, attempt, read_bytes),  # noqa: B023
            f"attempt {attempt} copies",
            within_s=180.0,
        )
        attempt, read_bytes = job["attempt"] + 1, read_so_far(job)
        for pid in processes(fresh_world, command):
            os.kill(pid, signal.SIGKILL)
    lab.command("set", read_seconds=0)
    job = fresh_world.wait_end(job_id)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    assert job["attempt"] >= len(_COMMANDS), "the last one may come when all is copied"
    assert {each["went_on"] for each in job["interruptions"]} <= {"same_snapshot", ""}
    assert "the hub's API process died (killed by SIGKILL)" in job["interruptions"][0]["failure"]["message"]
    (disk,) = job["disks"]
    assert int(disk["copied_bytes"]) - int(disk["recopied_bytes"]) == 4 * 48 * MIB
    fresh_world.assert_restores(job, lab)
    assert [each["job_id"] for each in fresh_world.ask("point", "list")["points"]] == [job_id]
    # The API took the span of the attempt that it was killed in with it.
    assert "attempt 1 (interrupted: its own span was lost with its process)" in until(
        lambda: "copy Hard disk" in (drawn := fresh_world.run("job", "trace", job_id).stdout) and drawn,
        "the spans of the movers have arrived",
    )
    until(lambda: not lab.left(_NAME), "snapshot and sessions are gone")
    fresh_world.assert_nothing_left((lab, _NAME))
