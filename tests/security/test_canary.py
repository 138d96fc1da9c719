# SPDX-License-Identifier: Apache-2.0
"""A password that occurs nowhere else is backed up with, and everything is searched for it.

The backup is slow enough to be looked at in the middle; meanwhile strangers try what they can.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from tests.e2e.kit import MIB, USER, Lab, World, data, until, world
from tests.security.memory import Search, processes
from tests.security.test_floods import half_open

from sendense.hub.v1 import site_service_pb2
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_common import rpc
from sendense_common.tunnel import ensure_key

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

log = logging.getLogger(__name__)

# Its ends are written in many ways; the middle is what is searched for as well, whatever surrounds it.
_MIDDLE = secrets.token_hex(12)
_PASSWORD = f"ä+/ {_MIDDLE} %&?\"'<ÿ"
_NAME = f"canary-{secrets.token_hex(8)}"
_ATTEMPTS = 50
_API = "sendense_hub.api"
_WORKER = "sendense_agent.worker"
_CREDENTIALS = "sendense_credentials"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("canary")) as made:
        yield made


@pytest.fixture(scope="module")
def lab(installation: World) -> Lab:
    made = installation.lab()
    made.command("set_password", password=_PASSWORD)
    installation.ask(
        "vcenter", "password", "lab", "--username", USER, "--password-stdin", secret=_PASSWORD + "\n"
    )
    (disk,) = made.add_vm(_NAME, [64 * MIB]).disks
    made.write(_NAME, disk, 0, data(48 * MIB, "canary"))
    return made


def where(made: World, secret: str, *, only: str = "") -> dict[str, set[str]]:
    """What kinds of processes hold the secret, and how."""
    search, found = Search(secret), dict[str, set[str]]()
    # Workers first: what they hold they do not hold for long.
    for pid, kind in sorted(processes(made.mark.encode()).items(), key=lambda each: each[1] != _WORKER):
        if not only or kind == only:
            found.setdefault(kind, set()).update(search.in_process(pid))
    log.info("searched %d MiB of %s", search.searched_bytes >> 20, sorted(found))
    return found


def assert_only_where_it_belongs(found: dict[str, set[str]]) -> None:
    for kind, forms in found.items():
        if kind.startswith(_CREDENTIALS) or kind in (_WORKER, "nbdkit"):
            assert all(form.startswith("memory: ") for form in forms), (kind, forms)
        else:
            assert not forms, f"{kind} has the password: {sorted(forms)}"


def assert_in_no_file(made: World, secret: str, *, at_least_bytes: int = MIB) -> None:
    search = Search(secret)
    for root in (made.installation.state, made.installation.run):
        found = search.in_files(root)
        assert not found, sorted(found)
    assert search.searched_bytes >= at_least_bytes


def test_the_password_is_in_no_process_file_or_log_but_where_the_operation_needs_it(
    installation: World, lab: Lab
) -> None:
    made = installation
    lab.command("delay_task", method="CreateSnapshot_Task", seconds=600)
    lab.command("set", login_seconds=20.0)
    job = made.ask("backup", "start", _NAME)
    # What finds nothing proves nothing, unless it finds what is there.
    until(lambda: where(made, _MIDDLE, only=_WORKER).get(_WORKER), "it is found in the worker, which logs in")
    logging_in = where(made, _MIDDLE)
    assert_only_where_it_belongs(logging_in)
    assert any(forms for kind, forms in logging_in.items() if kind.startswith(_CREDENTIALS))
    lab.command("set", login_seconds=0)
    until(lambda: "CreateSnapshot_Task" in lab.command("running_tasks"), "the worker has logged in")
    logged_in = where(made, _MIDDLE)
    assert_only_where_it_belongs(logged_in)
    assert where(made, _NAME, only=_API)[_API], "and what the hub knows is found in the hub"
    assert any(kind.startswith("sendense_hub.gateway") for kind in logged_in)

    lab.command("set", read_seconds=6.0)
    lab.command("delay_task", method="CreateSnapshot_Task", seconds=0)
    try:
        until(lambda: _read(made, job) > 0, "it copies")
        copying = where(made, _MIDDLE)
        assert {"nbdkit", "qemu-nbd", _WORKER} <= set(copying), "in the middle of the copy"
        assert_only_where_it_belongs(copying)
        assert_in_no_file(made, _MIDDLE)
        strangers_try(made, job)
        assert made.job(job["job_id"])["state"] == "JOB_STATE_RUNNING"
    finally:
        lab.command("set", read_seconds=0)
    ended = made.wait_end(job["job_id"])
    assert ended["state"] == "JOB_STATE_SUCCEEDED", ended
    made.assert_restores(ended, lab)
    until(lambda: _WORKER not in processes(made.mark.encode()).values(), "it went with its operation")
    assert_only_where_it_belongs(where(made, _MIDDLE))
    for secret in (_MIDDLE, _PASSWORD):
        assert_in_no_file(made, secret, at_least_bytes=48 * MIB)  # with the repository
    assert Search(_NAME).in_files(made.installation.hub.state), "what the hub knows is found in its files"


def _read(made: World, job: dict[str, Any]) -> int:
    return sum(int(disk["read_bytes"]) for disk in made.job(job["job_id"])["disks"])


def strangers_try(made: World, job: dict[str, Any]) -> None:
    """While it copies, another agent wants its export, and a thousand connections stand at the door."""
    exports = [path.stem for path in made.installation.hub.exports_dir.glob("*.sock")]
    assert exports
    key_file = made.directory / "stranger.key"
    public = ensure_key(key_file, "stranger")
    host, port = made.installation.hub.endpoint_file.read_text().strip().rsplit(":", 1)
    host_key = Path(f"{made.installation.hub.host_key_file}.pub").read_text()
    hub_log = made.installation.logs / "hub.log"

    async def attempts() -> None:
        async with rpc.connect(made.installation.hub.api_socket) as channel:
            request = site_service_pb2.RegisterSiteRequest(name="stranger", ssh_public_key=public)
            await SiteServiceStub(channel).RegisterSite(request)
        async with asyncssh.connect(
            host, int(port), username="stranger", client_keys=[str(key_file)], config=None, agent_path=None,
            known_hosts=([asyncssh.import_public_key(host_key)], [], []),
        ) as conn:  # fmt: skip
            for name in exports:
                for _ in range(_ATTEMPTS):
                    with pytest.raises(asyncssh.ChannelOpenError, match="may not open it"):
                        await conn.open_unix_connection(f"nbd/{name}")

    before = _read(made, job)
    with half_open(int(port), 1000, itertools.repeat("127.0.0.2")):
        asyncio.run(attempts())
        until(lambda: _read(made, job) > before, "the copy goes on", 60)
    refused = [line for line in hub_log.read_text().splitlines() if "agent=stranger" in line]
    assert sum("refused open" in line and "key=SHA256:" in line for line in refused) == _ATTEMPTS * len(
        exports
    )
