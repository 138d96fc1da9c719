# SPDX-License-Identifier: Apache-2.0
"""The credentials service as a user of its own: the hub's may ask for leases, and reaches nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.credentials.kit import NO_CREDENTIAL, sendense_credentials

from sendense_common import rpc
from sendense_common.paths import CredentialsPaths

pytestmark = pytest.mark.integration

# Numbers that nobody has: no entry in passwd is needed.
CREDENTIALS, HUB, GROUP = 61_001, 61_002, 61_003
STARTS_WITHIN_S = 60

_TRY_ALL = """
import asyncio, json, os, socket, sys
from pathlib import Path
from sendense_common.errors import SendenseError
from sendense_common.paths import CredentialsPaths
from sendense_hub.clients.leases import Leases

paths = CredentialsPaths(Path(sys.argv[1]), Path(sys.argv[2]))

def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def connected(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(str(path))

async def lease():
    try:
        await Leases(paths.hub_socket).issue(sys.argv[3], "site-a", 1, "job")
    except SendenseError as error:
        return error.reason_name

print(json.dumps({
    "lease": asyncio.run(lease()),
    "hub.sock": tried(lambda: connected(paths.hub_socket)),
    "agents.sock": tried(lambda: connected(paths.agents_socket)),
    "operator.sock": tried(lambda: connected(paths.operator_socket)),
    "a file beside them": tried(lambda: (paths.run / "new").touch()),
    "key": tried(lambda: paths.key_file.read_bytes()),
    "database": tried(lambda: paths.database_file.read_bytes()),
    "audit log": tried(lambda: os.listdir(paths.audit_log_dir)),
}))
"""


def as_user(number: int, *groups: int) -> dict[str, Any]:
    """Options of `subprocess`."""
    environment = {**os.environ, "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    return {"user": number, "group": number, "extra_groups": groups, "env": environment, "cwd": "/"}


@pytest.fixture
def paths() -> Iterator[CredentialsPaths]:
    """State and socket directories of the service's user, below one of root's that all may pass."""
    if os.getuid() != 0:
        pytest.skip("only root can run something as another user")
    with tempfile.TemporaryDirectory(prefix="sd-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o711)
        for each in ("state", "run"):
            (directory / each).mkdir(mode=0o700)
            os.chown(directory / each, CREDENTIALS, CREDENTIALS)
        found = CredentialsPaths(directory / "state", directory / "run")
        made = sendense_credentials("init-key", f"--state={found.state}", **as_user(CREDENTIALS))
        if made.returncode:
            pytest.skip(f"another user cannot run what is installed here: {made.stderr[-500:]}")
        yield found


@contextlib.contextmanager
def serving(paths: CredentialsPaths, *options: str) -> Iterator[None]:
    """As the service's user, who is in the group."""
    command = [sys.executable, "-m", "sendense_credentials.main"]
    command += [f"--state={paths.state}", f"--run={paths.run}", *options]
    with subprocess.Popen(command, **as_user(CREDENTIALS, GROUP)) as process:
        try:
            waiting = rpc.wait_healthy(paths.operator_socket, timeout_s=STARTS_WITHIN_S, what="the service")
            asyncio.run(waiting)
            yield
        finally:
            process.terminate()


def tries(paths: CredentialsPaths, user: int, *groups: int) -> dict[str, str]:
    """What comes of all that a user may try."""
    words = [str(paths.state), str(paths.run), NO_CREDENTIAL]
    done = subprocess.run(
        [sys.executable, "-c", _TRY_ALL, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **as_user(user, *groups),
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_hubs_user_gets_leases_and_reaches_neither_operators_socket_nor_key(paths: CredentialsPaths):
    refused = "PermissionError"
    with serving(paths, f"--socket-group={GROUP}"):
        assert tries(paths, HUB, GROUP) == {
            "lease": "CREDENTIAL_NOT_FOUND",  # it was answered
            "hub.sock": "done",
            "agents.sock": "done",
            "operator.sock": refused,
            "a file beside them": refused,
            "key": refused,
            "database": refused,
            "audit log": refused,
        }
        # Whoever is not in the group gets nowhere, and the service's own user everywhere: it is there.
        assert set(tries(paths, HUB).values()) == {"SERVICE_UNAVAILABLE", refused}
        own = tries(paths, CREDENTIALS)
        assert (own.pop("lease"), set(own.values())) == ("CREDENTIAL_NOT_FOUND", {"done"})
        modes = {each: stat.S_IMODE(each.stat().st_mode) for each in paths.run.rglob("*.sock")}
        assert modes == {
            paths.hub_socket: 0o660,
            paths.agents_socket: 0o660,
            paths.operator_socket: 0o600,
        }
        assert stat.S_IMODE(paths.operator_socket.parent.stat().st_mode) == 0o700


def test_without_a_group_the_sockets_are_the_services_users_alone(paths: CredentialsPaths):
    with serving(paths):
        assert {stat.S_IMODE(each.stat().st_mode) for each in paths.run.rglob("*.sock")} == {0o600}
        assert set(tries(paths, HUB, GROUP).values()) == {"SERVICE_UNAVAILABLE", "PermissionError"}


def test_a_group_that_the_service_is_not_in_is_refused_at_the_start(paths: CredentialsPaths):
    where = [f"--state={paths.state}", f"--run={paths.run}"]
    done = sendense_credentials(*where, f"--socket-group={GROUP}", **as_user(CREDENTIALS))
    assert done.returncode == 1
    assert f"{paths.run} cannot be opened to group {GROUP}: Operation not permitted" in done.stderr
    done = sendense_credentials(*where, "--socket-group=nobody-has-this", **as_user(CREDENTIALS))
    assert done.returncode == 2
    assert "there is no group 'nobody-has-this'" in done.stderr
    done = sendense_credentials(where[0], f"--socket-group={GROUP}", **as_user(CREDENTIALS, GROUP))
    assert done.returncode == 2
    assert "give --run too" in done.stderr
