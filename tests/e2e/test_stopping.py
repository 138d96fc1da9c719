# SPDX-License-Identifier: Apache-2.0
"""Services that are stopped, killed or moved while they work."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import MIB, Lab, World, data, qemu_img, until, world

pytestmark = pytest.mark.e2e

_NAME = "busy"


def _busy(made: World, *, slow: bool = False) -> tuple[Lab, str]:
    """A VM whose backup is in the middle of its copy, and stays slow if that is wanted: lab, job's ID."""
    lab = made.lab()
    (key,) = lab.add_vm(_NAME, [96 * MIB]).disks
    lab.write(_NAME, key, 0, data(96 * MIB, "busy"))
    lab.command("set", read_seconds=0.5)
    job_id = made.ask("backup", "start", _NAME)["job_id"]

    def copying() -> bool:
        job = made.job(job_id)
        assert job["state"] == "JOB_STATE_RUNNING", job
        return job["phase"] == "JOB_PHASE_COPY" and any(int(disk["read_bytes"]) for disk in job["disks"])

    until(copying, "the copy runs")
    if not slow:
        lab.command("set", read_seconds=0.0)
    return lab, job_id


def _keeps_its_snapshot_alone(lab: Lab) -> bool:
    return len(lab.state(_NAME)["snapshots"]) == 1 and not any("session" in each for each in lab.left(_NAME))


def _goes_on(made: World, lab: Lab, job_id: str) -> dict[str, Any]:
    """The job, which went on from the snapshot that it had, and is whole."""
    job = made.wait_end(job_id)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    # An attempt that came too early, before the site was there again, went on with nothing.
    assert {each["went_on"] for each in job["interruptions"]} - {""} == {"same_snapshot"}
    (disk,) = job["disks"]
    assert int(disk["recopied_bytes"]) <= 256 * MIB  # one checkpoint
    until(lambda: not lab.left(_NAME), "its session has ended", within_s=30)
    made.assert_nothing_left((lab, _NAME))
    made.assert_restores(job, lab)
    return job


@contextlib.contextmanager
def _watcher(made: World, job_id: str) -> Iterator[subprocess.Popen[str]]:
    """`sendense job watch`, which has seen the job; without the mark of what must end with `sendense up`."""
    with subprocess.Popen(
        [sys.executable, "-m", "sendense_cli.main", "job", "watch", job_id],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "SENDENSE_STATE": str(made.installation.state)},
    ) as watching:  # fmt: skip
        try:
            assert watching.stdout is not None
            assert "copy" in watching.stdout.readline()
            yield watching
        finally:
            watching.kill()


def test_stopping_everything_in_the_middle_keeps_what_the_job_goes_on_with(fresh_world: World) -> None:
    lab, job_id = _busy(fresh_world, slow=True)
    with _watcher(fresh_world, job_id) as watching:
        lab.command("set", read_seconds=0.0)
        _stops_and_goes_on(fresh_world, lab, job_id)
        told, waited = watching.communicate(timeout=60)
    assert (watching.returncode, "succeeded" in told) == (0, True)
    assert waited.count("waiting for the hub") == waited.count("the hub answers again") == 1, waited


def _stops_and_goes_on(fresh_world: World, lab: Lab, job_id: str) -> None:
    endpoint = fresh_world.installation.hub.endpoint_file.read_text().strip()
    assert fresh_world.stop() == 0
    assert not fresh_world.installation.run.exists(), list(fresh_world.installation.run.rglob("*"))
    assert _keeps_its_snapshot_alone(lab), lab.left(_NAME)
    fresh_world.assert_no_process()
    host, _, port = endpoint.rpartition(":")
    with socket.create_server((host, int(port))):
        # Agents of other sites dial that port: it does not start at another one.
        code, error = fresh_world.refused("up")
    assert (code, error["reason"]) == (4, "LISTENER_REFUSED")
    assert (port in error["message"], "--listen" in error["remedy"]) == (True, True)
    fresh_world.start()
    assert fresh_world.installation.hub.endpoint_file.read_text().strip() == endpoint
    job = _goes_on(fresh_world, lab, job_id)
    first = job["interruptions"][0]["failure"]["reason"]
    assert first in {"REASON_SERVICE_STOPPING", "REASON_HUB_RESTARTED"}


@pytest.mark.parametrize("service", ["agent", "hub"])
def test_sigterm_to_a_service_keeps_what_its_jobs_go_on_with(fresh_world: World, service: str) -> None:
    lab, job_id = _busy(fresh_world)
    os.kill(fresh_world.pids[service], signal.SIGTERM)
    # `up` notices that a part is missing, and stops the rest.
    assert fresh_world.up is not None
    _, errors = fresh_world.up.communicate(timeout=180)
    assert (fresh_world.up.returncode, f"{service} ended unexpectedly" in errors.decode()) == (5, True)
    fresh_world.up = None
    assert _keeps_its_snapshot_alone(lab), lab.left(_NAME)
    fresh_world.assert_no_process()
    fresh_world.start()
    _goes_on(fresh_world, lab, job_id)


def test_ff29_after_a_sigkill_of_everything_the_job_goes_on_and_nothing_is_left(fresh_world: World) -> None:
    """The processes die with their parents."""
    lab, job_id = _busy(fresh_world)
    assert fresh_world.up is not None
    fresh_world.up.kill()
    fresh_world.up.communicate(timeout=30)
    fresh_world.up = None
    fresh_world.assert_no_process()
    fresh_world.start()
    _goes_on(fresh_world, lab, job_id)


def test_a_start_waits_for_the_hub_of_one_that_was_killed(fresh_world: World) -> None:
    """It is told to end, and has its port and its state until then: here it is frozen for a while."""
    lab, job_id = _busy(fresh_world)
    assert fresh_world.up is not None
    hub = fresh_world.pids["hub"]
    os.kill(hub, signal.SIGSTOP)
    thaw = threading.Timer(3, os.kill, (hub, signal.SIGCONT))
    try:
        fresh_world.up.kill()
        fresh_world.up.communicate(timeout=30)
        fresh_world.up = None
        thaw.start()
        fresh_world.start()
    finally:
        thaw.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.kill(hub, signal.SIGCONT)
    _goes_on(fresh_world, lab, job_id)


def test_a_repository_that_was_moved_opens_and_stock_tools_agree(tmp_path: Path) -> None:
    first, second, name = tmp_path / "here", tmp_path / "there", "moved"
    with world(tmp_path, options=("--repository", f"default={first}")) as made:
        lab = made.lab()
        keys = lab.add_vm(name, [8 * MIB, 8 * MIB + 512]).disks
        sources = []
        for number in range(2):
            for key in keys:
                lab.write(name, key, number * MIB, data(MIB, (number, key)))
            job = made.back_up(name)
            sources += [(job["point_id"], key, lab.newest_frozen(name, key)) for key in keys]
        made.stop()
        shutil.move(first, second)
        # With our services stopped, stock tools see the same bytes.
        for point, key, source in sources:
            (layer,) = second.glob(f"*/*/{point}/disk-{key}.qcow2")
            assert qemu_img("check", "-f", "qcow2", str(layer)).returncode == 0
            compared = qemu_img("compare", "-f", "qcow2", "-F", "raw", str(layer), str(source))
            assert compared.returncode == 0, compared.stdout + compared.stderr
        made.options = ("--repository", f"default={second}")
        made.start()
        made.assert_restores(job, lab)
        lab.write(name, keys[0], 3 * MIB, data(MIB, "after"))
        after = made.back_up(name)
        assert {disk["mode"] for disk in after["disks"]} == {"incremental"}
        made.assert_restores(after, lab)
