# SPDX-License-Identifier: Apache-2.0
"""Where a check stands: a VM to throw away, its vCenter, and an installation, driven by its command."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sendense_lab.accept import site as vsphere

T = TypeVar("T")

_ENDED = {"JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"}
_LEFT_WITHIN_S = 60.0


class AcceptError(Exception):
    """It cannot even begin; the text says why."""


class CheckError(Exception):
    """A check failed: what was and what should have been."""


class CannotProvokeError(Exception):
    """A check could not bring about what it is for, and why."""


class Product:
    """The `sendense` command of one installation."""

    def __init__(self, state: Path) -> None:
        self._environment = {**os.environ, "SENDENSE_STATE": str(state)}

    async def run(self, *arguments: str, secret: str = "") -> tuple[int, Any]:
        """Exit code, and the JSON that it answered; of a refusal, its error."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sendense_cli.main", *arguments, "--json",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )  # fmt: skip
        output, errors = await child.communicate(secret.encode())
        try:
            answer = json.loads(output or errors or b"null")
        except ValueError:
            answer = {"error": {"message": (output + errors).decode(errors="replace").strip()}}
        return child.returncode or 0, answer

    async def ask(self, *arguments: str, secret: str = "") -> Any:
        """The answer of a command that must work; AcceptError."""
        code, answer = await self.run(*arguments, secret=secret)
        if code:
            raise AcceptError(f"sendense {' '.join(arguments[:2])}: {answer.get('error', answer)}")
        return answer


@dataclass
class Stand:
    """For all checks of one VM."""

    product: Product
    site: vsphere.Site
    machine: Any
    vm: str
    vcenter: str
    """Its name in the installation."""
    move_to: str = ""
    """Datastore to move a disk to; empty: none."""
    evidence: list[str] = field(default_factory=list)
    """What the current check saw."""

    async def see(self, function: Callable[[], T]) -> T:
        """Asks vSphere, without holding anybody up."""
        return await asyncio.to_thread(function)

    async def start(self, *options: str) -> str:
        """Begins a backup; gives its job."""
        code, job = await self.product.run(
            "backup", "start", self.vm, "--vcenter", self.vcenter, "--quiesce", "off", *options
        )
        if "job_id" not in job:
            raise CheckError(f"no job was made (exit code {code}): {job}")
        return str(job["job_id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """As it is now."""
        return dict(await self.product.ask("job", "show", job_id))

    async def end(self, job_id: str) -> dict[str, Any]:
        """When it has ended."""
        await self.product.run("job", "watch", job_id)
        job = await self.job(job_id)
        if job["state"] not in _ENDED:
            raise CheckError(f"job {job_id} does not end")
        modes = ", ".join(
            f"{disk['key']} {disk['mode']} {disk['mode_reason']}".strip() for disk in job["disks"]
        )
        failure = (job.get("failure") or {}).get("message", "")
        self.evidence.append(f"{job['state'].removeprefix('JOB_STATE_').lower()}: {failure or modes}")
        return job

    async def back_up(self, *options: str) -> dict[str, Any]:
        """A backup that must succeed, of every disk that the VM has, or with a reason."""
        job = await self.end(await self.start(*options))
        if job["state"] != "JOB_STATE_SUCCEEDED":
            raise CheckError(f"the backup failed: {job['failure']['message']}")
        have = {disk.key for disk in await self.see(lambda: vsphere.disks(self.machine))}
        named = {disk["key"] for disk in job["disks"]}
        if have != named:
            raise CheckError(f"the VM has the disks {sorted(have)}, the job names {sorted(named)}")
        silent = [each["key"] for each in skipped(job) if not each["mode_reason"]]
        if silent:
            raise CheckError(f"disks {silent} are not protected, and no reason is given")
        return job

    async def compare(self, job: dict[str, Any]) -> None:
        """The point's disks are, byte for byte, what is in the files of the VM, which must be off."""
        by_key = {disk.key: disk for disk in await self.see(lambda: vsphere.disks(self.machine))}
        for disk in copied(job):
            with tempfile.TemporaryDirectory(prefix="sendense-accept-") as directory:
                output = Path(directory) / "disk.raw"
                await self.product.ask(
                    "point", "export", job["point_id"], "--disk", str(disk["key"]), "--output", str(output)
                )
                restored = await self.see(lambda path=output: _sha256(path))  # type: ignore[misc]
            try:
                read = await self.see(
                    lambda key=disk["key"]: self.site.sha256(self.machine, by_key[key])  # type: ignore[misc]
                )
            except LookupError as error:
                raise CannotProvokeError(
                    f"disk {disk['key']} cannot be read for comparison: {error}"
                ) from error
            if restored != read:
                raise CheckError(f"disk {disk['key']} restores {restored}, the VM has {read}")
            self.evidence.append(f"disk {disk['key']}: SHA-256 {read[:16]}… is the same")

    async def power(self, *, on: bool) -> None:
        """Switches the VM on or off."""
        if await self.see(lambda: vsphere.is_on(self.machine)) != on:
            start = self.machine.PowerOnVM_Task if on else self.machine.PowerOffVM_Task
            await self.see(lambda: vsphere.wait(start()))

    async def nothing_left(self) -> None:
        """No snapshot of Sendense's, no session of its; CheckError."""
        deadline = asyncio.get_running_loop().time() + _LEFT_WITHIN_S
        while True:
            left = [f"snapshot {each.name}" for each in await self.see(lambda: vsphere.ours(self.machine))]
            left += [f"session {key[:8]}" for key in await self.see(self.site.other_sessions) or []]
            if not left:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise CheckError(f"left behind: {', '.join(left)}")
            await asyncio.sleep(0.5)


def copied(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Disks of a job that were copied."""
    return [disk for disk in job["disks"] if disk["state"] != "DISK_STATE_SKIPPED"]


def skipped(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Disks of a job that were not protected."""
    return [disk for disk in job["disks"] if disk["state"] == "DISK_STATE_SKIPPED"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
