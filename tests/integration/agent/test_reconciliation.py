# SPDX-License-Identifier: Apache-2.0
"""What killed workers leave at a site goes; what is in use, or somebody else's, stays."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import running_agent
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import agent_service_pb2
from sendense_agent.control import reconciliation
from sendense_agent.control.reconciliation import Reconciliation
from sendense_agent.datapath.sources.nbdkit import claimed
from sendense_common.acts import Act
from sendense_common.bound_sockets import bound_in
from sendense_common.paths import AgentPaths, private_dir
from sendense_common.tunnel._published_socket import PublishedSocket

pytestmark = pytest.mark.integration

WITHIN_S = 30.0
# Plays a mover: it has the socket PATH of this agent's, and does nothing.
_MOVER = """
import socket, sys, time
held = socket.socket(socket.AF_UNIX)
held.bind(sys.argv[2])
held.listen()
time.sleep(600)
"""
# Starts what follows as its child, says its number, and is a worker by its command line until it is killed.
_WORKER = """
import subprocess, sys, time
print(subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def paths(short_tmp: Path) -> AgentPaths:
    made = AgentPaths(short_tmp / "s", short_tmp / "r")
    for directory in (made.run, made.exports_dir, made.run / "n"):
        private_dir(directory)
    return made


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything counts as older than a minute."""
    monkeypatch.setattr(reconciliation, "_SETTLED_AFTER_S", -1.0)


@pytest.fixture
async def child_of_worker() -> AsyncIterator[Callable[..., Awaitable[tuple[int, int]]]]:
    """Starts a program below a worker that does not take it along: (worker, program)."""
    pids: list[int] = []

    async def start(*command: str) -> tuple[int, int]:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WORKER, "sendense_agent.worker", *command, stdout=asyncio.subprocess.PIPE
        )
        assert worker.stdout is not None
        pids.extend([worker.pid, int(await worker.stdout.readline())])
        workers.append(worker)
        return pids[-2], pids[-1]

    workers: list[asyncio.subprocess.Process] = []
    yield start
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for worker in workers:
        await worker.wait()


def nbdkit(at: Path) -> list[str]:
    """By its command line only: the real one ends with its parent by itself."""
    return ["bash", "-c", 'exec -a nbdkit tail -f /dev/null -- "$0"', f"--unix={at}"]


def mover(at: Path) -> list[str]:
    return [sys.executable, "-c", _MOVER, "sendense_agent.datapath.mover", str(at)]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def started(pid: int, at: Path) -> Callable[[], bool]:
    """Whether it is what it will be."""
    command = Path(f"/proc/{pid}/cmdline")
    return lambda: command.read_bytes().startswith(b"nbdkit") or at.name in bound_in(at.parent)


@pytest.mark.parametrize(("program", "place"), [(nbdkit, "n"), (mover, "x")])
async def test_a_process_whose_worker_is_gone_is_ended_and_one_that_has_a_worker_is_not(
    paths: AgentPaths, settled, child_of_worker, program: Callable[[Path], list[str]], place: str
):
    at = paths.run / place / "a.sock"
    worker, child = await child_of_worker(*program(at))
    await until(started(child, at), "it runs", WITHIN_S)
    tidy = Reconciliation(paths)
    assert await tidy.round() == []
    listened_on = [str(path) for path in at.parent.iterdir()]
    os.kill(worker, signal.SIGKILL)
    await until(lambda: not runs(worker), "the worker is gone", WITHIN_S)
    acts = await tidy.round()
    assert acts[0].what == "stray_process"
    assert str(child) in acts[0].where
    assert [act.where for act in acts[1:]] == listened_on
    await until(lambda: not runs(child), "it has ended", WITHIN_S)
    assert list(at.parent.iterdir()) == []
    assert await tidy.round() == []


async def test_processes_of_another_agent_or_a_person_are_left_alone(
    paths: AgentPaths, settled, child_of_worker, short_tmp: Path
):
    other = AgentPaths(short_tmp / "os", short_tmp / "or")
    for directory in (other.exports_dir, other.run / "n"):
        private_dir(directory)
    children = []
    for program, place in ((nbdkit, other.run / "n"), (mover, other.exports_dir), (nbdkit, short_tmp)):
        worker, child = await child_of_worker(*program(place / "b.sock"))
        await until(started(child, place / "b.sock"), "it runs", WITHIN_S)
        os.kill(worker, signal.SIGKILL)
        await until(lambda: not runs(worker), "the worker is gone", WITHIN_S)  # noqa: B023
        children.append(child)
    assert await Reconciliation(paths).round() == []
    assert all(runs(child) for child in children)


@contextlib.contextmanager
def listening(at: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(at))
        held.listen()
        yield


async def test_sockets_that_nobody_has_go_and_those_that_are_bound_or_published_stay(
    paths: AgentPaths, settled
):
    with listening(paths.exports_dir / "old.sock"):
        pass
    (paths.exports_dir / ".old.sock.123.1").touch()  # not yet published when it was killed
    published = PublishedSocket(paths.exports_dir / "new.sock", lambda made: made.close())
    with listening(paths.exports_dir / "plain.sock"):
        acts = await Reconciliation(paths).round()
        assert sorted(Path(act.where).name for act in acts) == [".old.sock.123.1", "old.sock"]
        assert {act.what for act in acts} == {"stale_socket"}
        assert sorted(path.name for path in paths.exports_dir.iterdir()) == ["new.sock", "plain.sock"]
    published.close()


async def test_files_of_a_source_stay_while_it_is_locked_or_served_and_go_afterwards(
    paths: AgentPaths, settled
):
    place = paths.run / "n"

    def files(label: str) -> None:
        (place / f"{label}.vddk").touch()
        (place / f"{label}.tmp").mkdir()
        (place / f"{label}.tmp" / "cache").touch()

    for label in ("dead", "claimed", "served"):
        files(label)
    (place / "dead.lock").touch()
    with claimed(place, "claimed"), listening(place / "served.sock"):
        acts = await Reconciliation(paths).round()
    assert sorted(Path(act.where).name for act in acts) == ["dead.lock", "dead.tmp", "dead.vddk"]
    assert sorted(path.name for path in place.iterdir() if path.stem == "dead") == []
    assert (place / "served.tmp" / "cache").exists()
    assert (place / "claimed.vddk").exists()


async def test_a_lock_that_is_held_by_another_process_counts(paths: AgentPaths, settled):
    lock = paths.run / "n" / "a.lock"
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert await Reconciliation(paths).round() == []
    (act,) = await Reconciliation(paths).round()
    assert act.where == str(lock)


async def test_what_was_made_just_now_is_left_alone(paths: AgentPaths):
    (paths.exports_dir / "a.sock").touch()
    (paths.run / "n" / "a.vddk").touch()
    assert await Reconciliation(paths).round() == []


async def test_a_hub_can_ask_for_it(short_tmp: Path, settled):
    async with running_agent(short_tmp) as agent, agent.stub() as stub:
        left = private_dir(agent.paths.exports_dir) / "old.sock"
        left.touch()
        answer = await stub.Reconcile(agent_service_pb2.ReconcileRequest(), timeout=WITHIN_S)
        assert [(act.what, act.where) for act in answer.acts] == [("stale_socket", str(left))]


async def test_it_is_done_when_the_agent_starts_and_again_and_again(
    paths: AgentPaths, settled, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reconciliation, "_EVERY_S", 0.02)
    rounds = [0]
    real = Reconciliation._remove_files

    def counted(self: Reconciliation) -> list[Act]:
        rounds[0] += 1
        if rounds[0] == 2:
            raise KeyError("forced")
        return real(self)

    monkeypatch.setattr(Reconciliation, "_remove_files", counted)
    async with Reconciliation(paths).running():
        await until(lambda: rounds[0] > 3, "a defect in one does not end them", WITHIN_S)
        (paths.exports_dir / "old.sock").touch()
        await until(lambda: not list(paths.exports_dir.iterdir()), "the next one", WITHIN_S)
