# SPDX-License-Identifier: Apache-2.0
"""The whole product as a user has it: `sendense up`, a simulated vCenter, and the `sendense` command."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendense_common.paths import Installation
from sendense_lab.client import LabClient, LabMachine
from sendense_lab.demo import leftovers

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
USER = "backup@vsphere.local"
PASSWORD = " +-'\"\\$#% pässwörd "
_MARK = "SENDENSE_TEST"
_READY_WITHIN_S = 90.0
_STOP_WITHIN_S = 180.0


def data(length: int, seed: object) -> bytes:
    """Bytes that neither compress nor repeat."""
    return hashlib.shake_128(repr(seed).encode()).digest(length)


def until(condition: Any, what: str, within_s: float = 60.0) -> Any:
    """Polls until the condition is true; gives its value."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return value


class Lab:
    """A simulated vCenter in a process of its own."""

    def __init__(
        self, directory: Path, name: str = "lab", *, options: Sequence[str] = (), inside: Sequence[str] = ()
    ) -> None:
        """Args: inside: enters where it runs, if that is not here."""
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.directory = directory
        (directory / "password").write_text(PASSWORD)
        with (directory / "vcenter.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*inside, sys.executable, "-m", "sendense_lab.main", "vcenter", f"--state={directory}",
                 f"--username={USER}", f"--password-file={directory / 'password'}", *options],
                stdout=subprocess.PIPE, stderr=log, bufsize=0,
            )  # fmt: skip
        assert _line(self.process).startswith(b"ready"), (directory / "vcenter.log").read_text()
        self._client = LabClient(directory)
        self.address = f"{self._client.host}:{self._client.port}"
        self.ca_file = self._client.ca_file

    def command(self, name: str, /, **arguments: Any) -> Any:
        return asyncio.run(self._client.command(name, **arguments))

    def add_vm(self, name: str, disks: Sequence[int | dict[str, Any]]) -> LabMachine:
        machine = asyncio.run(self._client.add_vm(name, disks))
        self.command("hold_frozen", vm=name, directory=str(self.frozen(name)))
        return machine

    def write(self, vm: str, disk: int, offset: int, content: bytes) -> None:
        asyncio.run(self._client.guest_write(vm, disk, offset, content))

    def zero(self, vm: str, disk: int, offset: int, length: int) -> None:
        asyncio.run(self._client.guest_zero(vm, disk, offset, length))

    def counters(self) -> dict[str, int]:
        return asyncio.run(self._client.counters())

    def state(self, vm: str) -> dict[str, Any]:
        return dict(self.command("state", vm=vm))

    def frozen(self, vm: str) -> Path:
        """Where a copy of each disk is kept at each snapshot."""
        return self.directory / "frozen" / vm

    def newest_frozen(self, vm: str, disk: int) -> Path:
        """What the disk held at the newest snapshot."""
        kept = self.frozen(vm).glob(f"snapshot-*-{disk}.raw")
        return max(kept, key=lambda path: int(path.name.split("-")[1]))

    def left(self, vm: str) -> list[str]:
        """Snapshots, delta files, sessions."""
        return asyncio.run(leftovers.at_vcenter(self._client, vm))

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)


@dataclass
class World:
    """An installation."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    """Enters where `sendense up` runs, if that is not here."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    up: subprocess.Popen[bytes] | None = None
    pids: dict[str, int] = field(default_factory=dict)
    labs: list[Lab] = field(default_factory=list)

    @property
    def installation(self) -> Installation:
        return Installation(self.directory / "s")

    @property
    def repository(self) -> Path:
        return self.installation.hub.state / "repository"

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "SENDENSE_STATE": str(self.installation.state),
            "COLUMNS": "120",
            _MARK: self.mark,
            **self.environment,
        }

    # --- services ---

    def start(self) -> None:
        """`sendense up`, ready."""
        self.up = subprocess.Popen(
            [*self.inside, sys.executable, "-m", "sendense_cli.main", "up", "--json", *self.options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # so that `select` sees all that there is
            env=self._environment,
        )
        said = b""
        while line := _line(self.up):
            said += line
            if line.startswith(b"}"):
                break
        assert said, f"`sendense up`: {self.up.communicate()[1].decode()}\n{self.logs()}"
        self.pids = json.loads(said)["pids"]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends `sendense up`; gives its exit code."""
        assert self.up is not None
        self.up.send_signal(number)
        self.up.communicate(timeout=_STOP_WITHIN_S)
        code, self.up = self.up.returncode, None
        return code

    def lab(self, name: str = "lab", **options: Any) -> Lab:
        """A simulated vCenter, added under its name."""
        lab = Lab(self.directory / name, name, **options)
        self.labs.append(lab)
        self.ask("vcenter", "add", name, "--address", lab.address, "--username", USER,
                 "--password-stdin", "--ca-file", str(lab.ca_file), secret=PASSWORD + "\n")  # fmt: skip
        return lab

    def close(self) -> None:
        if self.up is not None:
            self.stop()
        for lab in self.labs:
            lab.stop()

    def logs(self) -> str:
        """For a test that failed."""
        return "\n".join(file.read_text()[-3000:] for file in self.installation.logs.glob("*.log"))

    # --- the command ---

    def run(self, *arguments: str, secret: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sendense_cli.main", *arguments],
            input=secret, capture_output=True, text=True, env=self._environment, timeout=170, check=False,
        )  # fmt: skip

    def ask(self, *arguments: str, secret: str = "", code: int = 0) -> Any:
        """The JSON that a command answers."""
        done = self.run(*arguments, "--json", secret=secret)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def refused(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """(exit code, error) of a command that must fail."""
        done = self.run(*arguments, "--json")
        assert done.returncode != 0, f"{arguments} worked: {done.stdout}"
        return done.returncode, json.loads(done.stderr)["error"]

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sendense_cli.main", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self._environment,
        )  # fmt: skip

    def back_up(self, vm: str, *options: str) -> dict[str, Any]:
        """A backup that succeeds: the job."""
        job = self.ask("backup", "start", vm, "--wait", *options)
        assert job["state"] == "JOB_STATE_SUCCEEDED", job
        return dict(job)

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.ask("job", "show", job_id))

    def wait_end(self, job_id: str) -> dict[str, Any]:
        """The job when it has ended."""
        watched = self.run("job", "watch", job_id, "--json")
        return dict(json.loads(watched.stdout))

    def export(self, point: str, disk: int, file_format: str = "raw") -> Path:
        path = self.directory / f"{uuid.uuid4().hex}.{file_format}"
        self.ask(
            "point", "export", point, "--disk", str(disk), "--format", file_format, "--output", str(path)
        )
        return path

    # --- what must be true ---

    def assert_restores(self, job: dict[str, Any], lab: Lab) -> None:
        """Each disk of the job's point is what the simulated disk held at the newest snapshot."""
        for disk in job["disks"]:
            if disk["state"] == "DISK_STATE_SKIPPED":
                continue
            restored = self.export(job["point_id"], disk["key"])
            source = lab.newest_frozen(job["vm_name"], disk["key"])
            assert same_bytes(restored, source), f"disk {disk['key']} of {job['vm_name']} differs"
            restored.unlink()

    def assert_nothing_left(self, *vms: tuple[Lab, str]) -> None:
        """No snapshot, session, export, process, socket or half-made point."""
        left = [each for lab, vm in vms for each in lab.left(vm)]
        left += leftovers.while_up(self.installation.run)
        if self.up is not None:
            points = {each["point_id"] for each in self.ask("point", "list", "--limit", "1000")["points"]}
            left += leftovers.in_repository(self.repository, points)
        assert not left, left

    def assert_no_process(self) -> None:
        """Nothing that `sendense up` or a command started runs any more."""
        left = until(
            lambda: [leftovers.of_processes(_MARK, self.mark)] if not self._processes() else None,
            f"no process is left: {self._processes()}",
            within_s=30,
        )
        assert left == [[]]

    def _processes(self) -> list[str]:
        return leftovers.of_processes(_MARK, self.mark)


@contextlib.contextmanager
def world(
    directory: Path,
    *,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    inside: tuple[str, ...] = (),
) -> Iterator[World]:
    """A running installation."""
    made = World(directory, environment or {}, options, inside)
    try:
        made.start()
        yield made
    finally:
        made.close()
        # One that was killed has left its sockets.
        shutil.rmtree(made.installation.run, ignore_errors=True)


def same_bytes(left: Path, right: Path) -> bool:
    return subprocess.run(["cmp", "-s", str(left), str(right)], check=False).returncode == 0


def qemu_img(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=False)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The next line that a process says; empty when it ended or says nothing in time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _READY_WITHIN_S)
    return process.stdout.readline() if ready else b""
