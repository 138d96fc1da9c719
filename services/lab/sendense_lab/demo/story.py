# SPDX-License-Identifier: Apache-2.0
"""What the demonstration does, step by step, with the same commands that a user has."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sendense_common.paths import Installation
from sendense_lab.client import LabClient
from sendense_lab.demo import leftovers, report
from sendense_lab.demo.command_line import CommandLine, DemoError
from sendense_lab.demo.guest import Guest, GuestDisk, check_file_system
from sendense_lab.demo.proof import check_with_stock_tools, compare

_MIB = 1024 * 1024
_VM = "shop-db-01"
_VCENTER = "lab"
_USER = "backup@vsphere.local"
# Blanks at both ends, quotes, a plus in front of a minus: a password that a shell or nbdkit would spoil.
_PASSWORD = " +-'\"\\$#% pässwörd "  # noqa: S105 - of a simulation
_MARK = "SENDENSE_DEMO"
_LAYER = "disk-{key}.qcow2"


@dataclass(frozen=True)
class DemoOptions:
    """How it runs."""

    output: Path
    """For the facts, as JSON."""
    directory: Path
    """For everything it makes; must not exist, and is removed at the end."""
    keep: bool = False
    """Whether `directory` stays."""
    disks: tuple[GuestDisk, ...] = (GuestDisk(1536 * _MIB, 360 * _MIB), GuestDisk(768 * _MIB, 200 * _MIB))
    """Of the VM."""


@dataclass
class Run:
    """One backup and its proof."""

    mode: str
    job: dict[str, Any] = field(default_factory=dict)
    """As `sendense job show --json` gives it."""
    proofs: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By disk key."""

    def disks(self) -> list[dict[str, Any]]:
        """The facts per disk."""
        return [
            {
                "key": disk["key"],
                "label": disk["label"],
                "mode": disk["mode"],
                "capacity_bytes": int(disk["capacity_bytes"]),
                "changed_bytes": int(disk["changed_bytes"]),
                "read_bytes": int(disk["read_bytes"]),
                "copied_bytes": int(disk["copied_bytes"]),
                "wire_bytes": int(disk["wire_bytes"]),
                "seconds": round(disk["seconds"], 3),
                **self.proofs.get(disk["key"], {}),
            }
            for disk in self.job["disks"]
        ]


async def run_demo(options: DemoOptions, console: Console) -> bool:
    """Runs everything, writes the facts, and says whether all is identical and nothing is left.

    Raises:
        DemoError: a step did not work.
    """
    if options.directory.exists():
        raise DemoError(f"{options.directory} exists; remove it, or name another directory")
    began = time.monotonic()
    story = _Story(options, console)
    try:
        await story.tell()
    finally:
        story.left += leftovers.of_processes(_MARK, story.mark)
        await story.clean_up()
    facts = story.facts(time.monotonic() - began)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(facts, indent=1) + "\n")
    report.verdict(console, facts, options.output)
    return bool(facts["ok"])


class _Story:
    """One demonstration."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self._options = options
        self._console = console
        self.mark = uuid.uuid4().hex
        self.left: list[str] = []
        self._state = options.directory / "sendense"
        self._command = CommandLine(self._state, {_MARK: self.mark}, console.file)
        self._full = Run("full")
        self._incremental = Run("incremental")
        self._trace: dict[str, Any] = {}
        self._stock_tools_agree = False
        self._step = 0

    async def tell(self) -> None:
        """From the first process to the last."""
        directory = self._options.directory
        directory.mkdir(parents=True)
        self._say("A simulated vCenter, and a VM with two disks that hold real ext4 file systems")
        async with LabClient.start(
            directory / "lab", username=_USER, password=_PASSWORD, environment={_MARK: self.mark}
        ) as lab:
            guest = await Guest.make(lab, _VM, self._options.disks, directory)
            self._say("credentials, hub and one agent: sendense up")
            async with self._command.up():
                await self._add_vcenter(lab)
                self._say(f"The first backup: sendense backup start {_VM} --wait")
                await self._back_up(lab, self._full)
                self._say("The guest writes two files and deletes one on each disk")
                written = await guest.work()
                self._note(f"{written / _MIB:.1f} MiB were written by the guest")
                self._say(f"The second backup: sendense backup start {_VM} --wait")
                await self._back_up(lab, self._incremental)
                self._say("Both points restored, and every byte compared with what the disks held")
                await self._prove(self._full, has_news=False)
                await self._prove(self._incremental, has_news=True)
                await self._draw_trace()
                self.left += await leftovers.at_vcenter(lab, _VM)
                self.left += leftovers.while_up(Installation(self._state).run)
        self._say("Everything is stopped; stock qemu-img opens the repository by itself")
        await self._ask_stock_tools()

    async def _add_vcenter(self, lab: LabClient) -> None:
        added = ["vcenter", "add", _VCENTER, "--address", f"{lab.host}:{lab.port}", "--username", _USER]
        await self._command.ask(
            *added, "--password-stdin", "--ca-file", str(lab.ca_file), secret=_PASSWORD + "\n"
        )
        await self._command.show("vcenter", "test", _VCENTER)
        await self._command.show("vm", "list")

    async def _back_up(self, lab: LabClient, run: Run) -> None:
        """One backup, with what the disks hold at its snapshot kept aside."""
        frozen = self._frozen(run)
        await lab.command("hold_frozen", vm=_VM, directory=str(frozen))
        await self._command.show("backup", "start", _VM, "--wait")
        newest = (await self._command.ask("job", "list", "--limit", "1"))["jobs"][0]
        run.job = await self._command.ask("job", "show", newest["job_id"])
        modes = {disk["mode"] for disk in run.job["disks"]}
        if modes != {run.mode}:
            raise DemoError(f"the backup should be {run.mode}, and is {modes}")

    async def _prove(self, run: Run, *, has_news: bool) -> None:
        """Exports every disk of a point and compares it with the copy kept aside."""
        for disk in run.job["disks"]:
            key = int(disk["key"])
            restored = self._options.directory / f"restored-{run.mode}-{key}.raw"
            await self._command.ask(
                "point", "export", run.job["point_id"], "--disk", str(key), "--output", str(restored)
            )
            proof = await asyncio.to_thread(compare, restored, self._source(run, key))
            await check_file_system(restored, has_news=has_news)
            run.proofs[key] = {
                "sha256": proof.sha256,
                "source_sha256": proof.source_sha256,
                "identical": proof.identical,
                "file_system": "clean",
            }
            restored.unlink()
        report.proofs(self._console, run.mode, run.disks())

    async def _draw_trace(self) -> None:
        job_id = self._full.job["job_id"]
        self._say(f"Where the time went: sendense job trace {job_id[:8]}")
        await self._command.show("job", "trace", job_id)
        answer = await self._command.ask("job", "trace", job_id)
        self._trace = {
            "id": answer["trace_id"],
            "services": sorted({span["service"] for span in answer["spans"]}),
            "span_count": len(answer["spans"]),
        }

    async def _ask_stock_tools(self) -> None:
        repository = Installation(self._state).hub.state / "repository"
        points = {run.job["point_id"] for run in (self._full, self._incremental)}
        self.left += leftovers.in_repository(repository, points)
        for run in (self._full, self._incremental):
            (directory,) = repository.glob(f"*/*/{run.job['point_id']}")
            for disk in run.job["disks"]:
                key = int(disk["key"])
                await check_with_stock_tools(directory / _LAYER.format(key=key), self._source(run, key))
        self._stock_tools_agree = True
        self._note("qemu-img check and qemu-img compare agree on every disk of both points")

    def _frozen(self, run: Run) -> Path:
        return self._options.directory / f"frozen-{run.mode}"

    def _source(self, run: Run, key: int) -> Path:
        (file,) = self._frozen(run).glob(f"*-{key}.raw")
        return file

    def facts(self, seconds: float) -> dict[str, Any]:
        """What is written to the output file."""
        runs = {
            run.mode: {"job_id": run.job["job_id"], "point_id": run.job["point_id"], "disks": run.disks()}
            for run in (self._full, self._incremental)
        }
        all_identical = all(
            disk["identical"] and disk["sha256"] == disk["source_sha256"]
            for run in runs.values()
            for disk in run["disks"]
        )
        return {
            "ok": all_identical and self._stock_tools_agree and not self.left,
            **runs,
            "stock_tools_agree": self._stock_tools_agree,
            "leftovers": self.left,
            "trace": self._trace,
            "seconds": round(seconds, 1),
        }

    async def clean_up(self) -> None:
        """Removes what was made."""
        if self._options.keep:
            self._note(f"everything is kept in {self._options.directory}")
            return
        for state in (self._state, self._options.directory / "lab"):
            if state.exists():
                shutil.rmtree(Installation(state).run, ignore_errors=True)
        await asyncio.to_thread(shutil.rmtree, self._options.directory, ignore_errors=True)

    def _say(self, text: str) -> None:
        self._step += 1
        self._console.print(f"\n[bold cyan]{self._step}.[/] [bold]{text}[/]", highlight=False)

    def _note(self, text: str) -> None:
        self._console.print(f"[dim]{text}[/]", highlight=False)
