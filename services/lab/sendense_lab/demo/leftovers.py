# SPDX-License-Identifier: Apache-2.0
"""What a demonstration must not leave: snapshots, sessions, processes, sockets, half-made files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sendense_lab.client import LabClient

_POINT_FILES = {".qcow2", ".ledger", ".json"}


async def at_vcenter(lab: LabClient, vm: str) -> list[str]:
    """Snapshots, delta files and sessions that are still there."""
    state, counters = await lab.command("state", vm=vm), await lab.counters()
    left = [f"snapshot {each['name']} ({each['moref']})" for each in state["snapshots"]]
    left += [f"delta file {name}" for name in state["deltas"]]
    if counters["sessions"]:
        left.append(f"{counters['sessions']} vCenter sessions")
    return left


def while_up(run: Path) -> list[str]:
    """Sockets of exports and of disks that are read, and the programs behind them."""
    left = [f"socket {path}" for name in ("hub/x", "g-local/x", "g-local/n") for path in _files(run / name)]
    left += [f"process {name}" for name in _commands({"qemu-nbd", "nbdkit"}, str(run))]
    return left


def in_repository(repository: Path, point_ids: set[str]) -> list[str]:
    """Files that are no part of the named points, nor copies of the catalog."""
    known = {repository / "sendense-repository.json"}
    return [
        f"file {path}"
        for path in _files(repository)
        if path not in known
        and path.relative_to(repository).parts[0] != "hub-catalogs"
        and not (path.parent.name in point_ids and path.suffix in _POINT_FILES)
    ]


def of_processes(name: str, value: str) -> list[str]:
    """Processes that have this environment variable: everything that the demonstration started."""
    wanted = f"{name}={value}".encode()
    return [
        f"process {pid}: {command}"
        for pid, command, environment in _processes()
        if wanted in environment.split(b"\0")
    ]


def _files(directory: Path) -> Iterator[Path]:
    yield from (path for path in sorted(directory.rglob("*")) if not path.is_dir())


def _commands(names: set[str], within: str) -> Iterator[str]:
    for pid, command, _ in _processes():
        words = command.split()
        if words and Path(words[0]).name in names and within in command:
            yield f"{pid}: {command}"


def _processes() -> Iterator[tuple[int, str, bytes]]:
    """(ID, command line, environment) of all processes that can be looked at."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = (entry / "environ").read_bytes()
        except OSError:  # it has just ended, or is somebody else's
            continue
        if command:
            yield int(entry.name), command, environment
