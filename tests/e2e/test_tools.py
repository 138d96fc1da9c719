# SPDX-License-Identifier: Apache-2.0
"""Field failure 7: a person with stock tools can look at everything, also while a backup runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import MIB, Lab, World, data, until

pytestmark = pytest.mark.e2e

_GRPCURL = str(Path(sys.executable).with_name("grpcurl"))


def _grpcurl(socket: Path, *arguments: str) -> Any:
    return subprocess.run(
        [_GRPCURL, "-plaintext", "-unix", *arguments[:-1], str(socket), *arguments[-1:]],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("which", "service", "method"),
    [
        ("hub", "sendense.hub.v1.JobService", "ListJobs"),
        ("credentials", "sendense.credentials.v1.CredentialService", "ListCredentials"),
        ("agent", "sendense.agent.v1.AgentService", "GetAgent"),
    ],
)
def test_ff07_grpcurl_lists_describes_and_calls(
    shared_world: World, shared_lab: Lab, which: str, service: str, method: str
) -> None:
    place = shared_world.installation
    socket = {
        "hub": place.hub.api_socket,
        "credentials": place.credentials.operator_socket,
        # What the agent published through the tunnel, at the hub's side.
        "agent": place.hub.agents_dir / "local.sock",
    }[which]
    listed = _grpcurl(socket, "list")
    assert service in listed.stdout.split(), listed.stderr
    described = subprocess.run(
        [_GRPCURL, "-plaintext", "-unix", str(socket), "describe", service],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert f"rpc {method} " in described.stdout
    called = _grpcurl(socket, f"{service}/{method}")
    assert called.returncode == 0, called.stderr
    json.loads(called.stdout)
    health = _grpcurl(socket, "grpc.health.v1.Health/Check")
    assert "SERVING" in health.stdout


def test_ff07_nbdinfo_answers_at_both_ends_of_a_running_export(shared_world: World, shared_lab: Lab) -> None:
    lab, name, capacity = shared_lab, "looked-at", 512 * MIB
    (key,) = lab.add_vm(name, [capacity]).disks
    block = data(64 * MIB, name)
    for number in range(6):
        lab.write(name, key, number * 64 * MIB, block)
    job_id = shared_world.ask("backup", "start", name)["job_id"]
    for run in (shared_world.installation.hub.run, shared_world.installation.agent("local").run):
        socket = until(lambda run=run: next((run / "x").glob("*.sock"), None), f"an export appears in {run}")
        done = subprocess.run(
            ["nbdinfo", "--json", f"nbd+unix:///{socket.stem}?socket={socket}"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["exports"][0]["export-size"] == capacity
    job = shared_world.wait_end(job_id)
    assert job["state"] == "JOB_STATE_SUCCEEDED", job
    shared_world.assert_restores(job, lab)
