# SPDX-License-Identifier: Apache-2.0
"""What is wrong is refused with a stable reason, an exit code, and something to do; nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.kit import MIB, Lab, World, data

pytestmark = pytest.mark.e2e

_UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def point(shared_world: World, shared_lab: Lab) -> dict[str, Any]:
    name = "kept"
    (key,) = shared_lab.add_vm(name, [24 * MIB]).disks
    shared_lab.write(name, key, 0, data(16 * MIB, name))
    return shared_world.back_up(name)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["backup", "start", "no-such-vm"], 3, "VM_NOT_FOUND"),
        (["backup", "start", "kept", "--vcenter", "nowhere"], 3, "VCENTER_NOT_FOUND"),
        (["backup", "start", "kept", "--repository", "nowhere"], 3, "REPOSITORY_NOT_FOUND"),
        (["backup", "start", ""], 2, "INVALID_REQUEST"),
        (["backup", "start", "x" * 10_000], 2, "INVALID_REQUEST"),
        (["job", "show", _UNKNOWN], 3, "JOB_NOT_FOUND"),
        (["job", "cancel", _UNKNOWN], 3, "JOB_NOT_FOUND"),
        (["job", "trace", _UNKNOWN], 3, "JOB_NOT_FOUND"),
        (["point", "list", "no-such-vm"], 3, "VM_NOT_FOUND"),
        (["point", "list", "kept", "--vcenter", "nowhere"], 3, "VCENTER_NOT_FOUND"),
        (["point", "show", _UNKNOWN], 3, "POINT_NOT_FOUND"),
        (["point", "verify", _UNKNOWN], 3, "POINT_NOT_FOUND"),
        (["point", "delete", _UNKNOWN], 3, "POINT_NOT_FOUND"),
        (["point", "export", _UNKNOWN, "--disk", "2000", "--output", "/tmp/x"], 3, "POINT_NOT_FOUND"),
        (["vcenter", "test", "nowhere"], 3, "VCENTER_NOT_FOUND"),
        (["vcenter", "remove", "nowhere"], 3, "VCENTER_NOT_FOUND"),
        (["vm", "list", "--vcenter", "nowhere"], 3, "VCENTER_NOT_FOUND"),
    ],
)
def test_what_does_not_exist(
    shared_world: World, point: dict[str, Any], arguments: list[str], code: int, reason: str
) -> None:
    found, error = shared_world.refused(*arguments)
    assert (found, error["reason"]) == (code, reason)
    assert error["message"]


def test_an_export_never_overwrites(shared_world: World, point: dict[str, Any], tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    export = ["point", "export", point["point_id"], "--disk", "2000", "--output"]
    code, error = shared_world.refused(*export, str(taken))
    assert (code, error["reason"]) == (4, "OUTPUT_EXISTS")
    assert taken.read_text() == "precious"
    code, error = shared_world.refused(*export, str(tmp_path / "no" / "such" / "folder"))
    assert error["reason"] == "OUTPUT_UNWRITABLE"
    code, error = shared_world.refused(
        "point", "export", point["point_id"], "--disk", "9", "--output", str(tmp_path / "new")
    )
    assert (code, error["reason"]) == (3, "DISK_NOT_FOUND")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    options = f"size=4m,uid={os.getuid()}"
    subprocess.run([*as_root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    yield path
    subprocess.run([*as_root, "umount", str(path)], check=True)


def test_a_full_disk_under_an_export(shared_world: World, point: dict[str, Any], small_disk: Path) -> None:
    code, error = shared_world.refused(
        "point", "export", point["point_id"], "--disk", "2000", "--output", str(small_disk / "x")
    )
    assert (code, error["reason"]) == (4, "OUTPUT_FULL")
    assert list(small_disk.iterdir()) == []
    shared_world.ask("point", "verify", point["point_id"])


def test_a_password_is_never_taken_from_the_command_line(shared_world: World) -> None:
    arguments = ["vcenter", "add", "x", "--address", "h", "--username", "u", "--thumbprint", "00" * 32]
    code, error = shared_world.refused(*arguments)
    assert (code, error["reason"]) == (2, "INVALID_REQUEST")
    assert shared_world.run(*arguments, "--password", "secret").returncode == 2


def test_a_disk_key_that_is_none_is_wrong_usage(shared_world: World) -> None:
    done = shared_world.run("point", "export", _UNKNOWN, "--disk", "9" * 24, "--output", "/tmp/x")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_vcenter_is_added_once(shared_world: World, shared_lab: Lab) -> None:
    done = shared_world.run(
        "vcenter", "add", "lab", "--address", shared_lab.address, "--username", "u", "--password-stdin",
        "--ca-file", str(shared_lab.ca_file), secret="x",
    )  # fmt: skip
    assert (done.returncode, "VCENTER_EXISTS" in done.stderr) == (4, True)
    # The password of the one that exists is untouched.
    shared_world.ask("vcenter", "test", "lab")


def test_without_services_the_command_says_what_to_do(tmp_path: Path) -> None:
    empty = World(tmp_path)
    done = empty.run("job", "list")
    assert (done.returncode, "sendense up" in done.stderr) == (5, True)
    assert "Traceback" not in done.stderr
    assert empty.run("doctor").returncode == 1


def test_a_second_up_on_the_same_state_is_refused(shared_world: World) -> None:
    done = shared_world.run("up")
    assert (done.returncode, "another `sendense up`" in done.stderr) == (5, True)
    assert shared_world.installation.hub.api_socket.exists()
    shared_world.ask("job", "list")


def test_the_doctor_is_content(shared_world: World, shared_lab: Lab) -> None:
    checks = shared_world.ask("doctor")["checks"]
    assert {check["status"] for check in checks} == {"CHECK_STATUS_OK"}, checks
    assert {"tool.qemu-nbd", "tool.nbdkit", "key.credentials", "repository.default", "site.local"} <= {
        check["name"] for check in checks
    }
