# SPDX-License-Identifier: Apache-2.0
"""What a scenario's file may say; docs/scenarios.md explains it. Field names are the file's keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sendense_lab.vcenter.datastore import DatastoreSpec
from sendense_lab.vcenter.events import PlannedEvent
from sendense_lab.vcenter.faults import PlannedFault
from sendense_lab.vcenter.inventory import DATASTORE, HOST
from sendense_lab.vcenter.virtual_disk import DiskSpec


class ScenarioError(Exception):
    """A scenario's file says what cannot be; the text has file, key, and what is allowed."""


@dataclass(frozen=True)
class VcenterPart:
    """[vcenter]."""

    version: Literal["7.0", "8.0"] = "8.0"
    """What it says it is."""
    hosts: list[str] = field(default_factory=lambda: [HOST])
    """Names of its ESXi hosts; a VM names the one that it runs on."""


@dataclass(frozen=True)
class DiskPart(DiskSpec):
    """[[vm.disks]]: a disk, and what is in it."""

    data: list[str] = field(default_factory=list)
    """Areas with noise in them, as "1MiB+300KiB" (where, and how long)."""


@dataclass(frozen=True)
class MachinePart:
    """[[vm]]."""

    name: str
    """With `count`, followed by a number."""
    disks: list[DiskPart] = field(default_factory=list)
    host: str = ""
    """Empty: the first."""
    datastore: str = ""
    """Where its files are; empty: the first."""
    on: bool = True
    """Whether it runs."""
    count: int = 1
    """So many of them: NAME-0001 and so on, on the hosts in turn."""
    snapshots: list[str] = field(default_factory=list)
    """Names of those that somebody took before."""

    def names(self) -> list[str]:
        """Of the VMs that it makes."""
        if self.count == 1:
            return [self.name]
        return [f"{self.name}-{number:04d}" for number in range(1, self.count + 1)]


@dataclass(frozen=True)
class Step:
    """[[backup.before]]: a command of the lab, with its arguments beside it."""

    command: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ExpectedDisk:
    """[backup.expect.disks.KEY]."""

    mode: str
    """As the job has it: "full", "incremental", "compared"."""
    mode_reason: str = ""
    """As the job has it; empty for an incremental."""


@dataclass(frozen=True)
class Expected:
    """[backup.expect]: what the job must say."""

    state: Literal["succeeded", "failed", "cancelled"]
    reason: str = ""
    """Of the failure, as "SNAPSHOT_LOST"."""
    disks: dict[str, ExpectedDisk] = field(default_factory=dict)
    """By device key: those that are copied."""
    not_protected: dict[str, str] = field(default_factory=dict)
    """By device key: why."""
    warnings: list[str] = field(default_factory=list)
    """Codes, in any order."""
    quiesce: str = ""
    """Result of quiescing; empty: any."""
    attempts: int = 0
    """How often it was tried; 0: any."""
    says: list[str] = field(default_factory=list)
    """Words that are in what the failure or a warning says."""


@dataclass(frozen=True)
class BackupPart:
    """[[backup]]: one backup, and what happens around it."""

    vm: str
    expect: Expected
    mode: Literal["auto", "full", "incremental"] = "auto"
    quiesce: Literal["require", "try", "off"] = "off"
    settings: dict[str, Any] = field(default_factory=dict)
    """For this backup only."""
    before: list[Step] = field(default_factory=list)
    """Before it starts, one after another."""
    faults: list[PlannedFault] = field(default_factory=list)
    """While it runs; calls are counted from its start."""
    events: list[PlannedEvent] = field(default_factory=list)
    """While it runs; each must happen."""


@dataclass(frozen=True)
class Outside:
    """[outside]: whether it can be brought about at a real vCenter, with a VM to throw away."""

    provoke: str = ""
    """Which check of `sendense-lab accept` does it; empty: none."""
    cannot: str = ""
    """Else why not."""


@dataclass(frozen=True)
class Scenario:
    """A file."""

    title: str
    outside: Outside
    about: str = ""
    """What it is for, and what vSphere does or is believed to do."""
    rules: list[int] = field(default_factory=list)
    """Of docs/changed-blocks.md that it is about."""
    fast: bool = True
    """Whether it is part of every test run."""
    vcenter: VcenterPart = field(default_factory=VcenterPart)
    datastores: list[DatastoreSpec] = field(default_factory=lambda: [DatastoreSpec(DATASTORE)])
    vm: list[MachinePart] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """All through."""
    backup: list[BackupPart] = field(default_factory=list)
    """In this order."""
