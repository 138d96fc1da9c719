# SPDX-License-Identifier: Apache-2.0
"""A site on another host: let in by the line of an invitation, backed up through, and put out again.

Hub and site are two network namespaces with one cable; the site's vCenter is where only its agent reaches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.chaos.rooms import Link, Room, link, room
from tests.e2e.kit import MIB, PASSWORD, USER, Lab, World, data, until, world

pytestmark = pytest.mark.e2e

SITE, HUB = "paris", "10.77.9.1:8022"
CUT_WITHIN_S = 5.0
_ESTABLISHED = "01"


@dataclass
class Rooms:
    """Two hosts."""

    runner: asyncio.Runner
    hub: Room
    site: Room
    cable: Link

    def speed(self, mbit: int) -> None:
        self.runner.run(self.cable.speed(mbit))

    def connections(self) -> list[str]:
        """TCP connections of the site to the hub."""
        rows = Path(f"/proc/{self.site.pid}/net/tcp").read_text().splitlines()[1:]
        port = f":{int(HUB.rpartition(':')[2]):04X}"
        return [row for row in rows if row.split()[2].endswith(port) and row.split()[3] == _ESTABLISHED]


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def make() -> Rooms:
            hub = await stack.enter_async_context(room("hub"))
            site = await stack.enter_async_context(room("site"))
            return Rooms(runner, hub, site, await link(hub, site, 9, 2000))

        try:
            yield runner.run(make())
        finally:
            runner.run(stack.aclose())


@pytest.fixture
def centre(rooms: Rooms, tmp_path: Path) -> Iterator[World]:
    listen = ("--listen", f"0.0.0.0:{HUB.rpartition(':')[2]}")
    with world(tmp_path, options=listen, inside=tuple(rooms.hub.enter())) as made:
        yield made


@pytest.fixture
def lab(rooms: Rooms, tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path / "vcenter", inside=rooms.site.enter())
    try:
        yield made
    finally:
        made.stop()


@contextlib.contextmanager
def at_the_site(rooms: Rooms, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of the agent, until the block ends."""
    with log.open("wb") as said:
        child = subprocess.Popen(
            rooms.site.enter(sys.executable, "-m", "sendense_agent.main", *words),
            stdout=said, stderr=said, env={**os.environ, "TMPDIR": "/tmp"},
        )  # fmt: skip
    try:
        yield child
    finally:
        child.terminate()
        child.wait(150)


def let_in(rooms: Rooms, centre: World, state: Path) -> None:
    """From the invitation to an agent that has its keys."""
    assert centre.refused("agent", "invite", SITE)[1]["metadata"]["field"] == "--hub"  # it listens on all
    made = centre.ask("agent", "invite", SITE, "--hub", HUB)
    program, command, *words = made["command"].split()
    assert (program, command) == ("sendense-agent", "enroll")
    words[words.index("--state") + 1] = str(state)
    log = state.with_suffix(".enroll")
    with at_the_site(rooms, log, command, *words) as enrolling:
        until(lambda: "Waiting for approval" in log.read_text(), f"its keys are shown: {log.read_text()}")
        (shown,) = [word for word in log.read_text().split() if word.startswith("SHA256:")]
        assert any(f"invitation.{SITE}" == each["name"] for each in centre.ask("doctor")["checks"])
        centre.ask("agent", "approve", SITE, "--fingerprint", shown)
        assert enrolling.wait(60) == 0, log.read_text()


def agent(centre: World) -> dict[str, object]:
    listed = centre.ask("agent", "list")["agents"]
    return next(each for each in listed if each["name"] == SITE)


@pytest.mark.timeout(300)
def test_a_site_on_another_host_is_let_in_backed_up_through_and_put_out_in_the_middle_of_a_backup(
    rooms: Rooms, centre: World, lab: Lab, tmp_path: Path
):
    state = tmp_path / "agent"
    let_in(rooms, centre, state)
    lab.add_vm("web", [64 * MIB])
    lab.write("web", 2000, 0, data(16 * MIB, "first"))
    with at_the_site(rooms, tmp_path / "agent.log", "run", f"--state={state}"):
        until(lambda: agent(centre)["connected"], "the agent is connected")
        centre.ask("vcenter", "add", "vc", "--address", lab.address, "--username", USER, "--password-stdin",
                   "--ca-file", str(lab.ca_file), "--agent", SITE, secret=PASSWORD + "\n")  # fmt: skip
        first = centre.back_up("web")
        centre.assert_restores(first, lab)

        lab.write("web", 2000, 0, data(32 * MIB, "second"))
        rooms.speed(16)  # 2 MB a second: the backup is in the middle for long
        job = centre.ask("backup", "start", "web")
        job_id = job["job_id"]
        until(
            lambda: [each for each in centre.job(job_id)["disks"] if int(each["copied_bytes"])], "it copies"
        )
        assert len(rooms.connections()) >= 2  # the agent's and a mover's
        centre.ask("agent", "revoke", SITE)
        revoked_at = time.monotonic()
        until(lambda: not rooms.connections(), "all connections are cut", within_s=CUT_WITHIN_S)
        ended = centre.wait_end(job_id)
        assert time.monotonic() - revoked_at < 3 * CUT_WITHIN_S
        assert (ended["state"], ended["failure"]["reason"]) == ("JOB_STATE_FAILED", "REASON_SITE_REVOKED")
        centre.assert_nothing_left()
        assert (agent(centre)["state"], agent(centre)["connected"]) == ("revoked", False)
        refused = centre.ask("backup", "start", "web", "--wait", code=1)
        assert refused["failure"]["reason"] == "REASON_SITE_REVOKED"
        # That its log cannot be asked for is said, and no trouble for good.
        verified = {each["log"]: each for each in centre.ask("audit", "verify")["logs"]}
        assert {log for log, each in verified.items() if each["revoked"]} == {f"agent:{SITE}"}
        # Its points stay, and restore.
        assert [each["point_id"] for each in centre.ask("point", "list")["points"]] == [first["point_id"]]
        centre.ask("point", "verify", first["point_id"])
