# SPDX-License-Identifier: Apache-2.0
"""A scenario on the stage: its inventory, and backup by backup what happens around it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sendense_lab.scenarios.model import MachinePart, Scenario
from sendense_lab.scenarios.reader import area
from sendense_lab.vcenter.control import Commands
from sendense_lab.vcenter.server import Vcenter


def load(scenario: Scenario | None, files: Path, username: str, password: str) -> tuple[Vcenter, Commands]:
    """The vCenter of a scenario, or an empty one without; with its commands."""
    if scenario is None:
        vcenter = Vcenter(files, username, password)
        return vcenter, Commands(vcenter)
    vcenter = Vcenter(
        files,
        username,
        password,
        version=scenario.vcenter.version,
        hosts=scenario.vcenter.hosts,
        datastores=scenario.datastores,
    )
    commands = Commands(vcenter)
    player = Player(scenario, commands)
    commands.play_on = player.next_backup
    player.set_up()
    return vcenter, commands


class Player:
    """Of one scenario."""

    def __init__(self, scenario: Scenario, commands: Commands) -> None:
        self._scenario = scenario
        self._commands = commands
        self._next = 0
        self._before: dict[str, Any] = {}
        """Settings that the last backup changed, as they were."""

    def set_up(self) -> None:
        """Makes VMs, their data and earlier snapshots, then applies the settings."""
        hosts = self._scenario.vcenter.hosts
        for machine in self._scenario.vm:
            for number, name in enumerate(machine.names()):
                self._make(machine, name, machine.host or hosts[number % len(hosts)])
        self._commands.set(**self._scenario.settings)

    def _make(self, machine: MachinePart, name: str, host: str) -> None:
        made = self._commands.add_vm(
            name,
            [
                {key: value for key, value in dataclasses.asdict(disk).items() if key != "data"}
                for disk in machine.disks
            ],
            host=host,
            datastore=machine.datastore,
            on=machine.on,
        )
        for key, disk in zip(made["disks"], machine.disks, strict=True):
            for text in disk.data:
                offset, length = area(text)
                self._commands.guest_fill(name, key, offset, length, seed="first")
        for snapshot in machine.snapshots:
            self._commands.take_snapshot(name, snapshot)

    def next_backup(self) -> dict[str, Any] | None:
        """Arranges what happens before and during the next backup, and gives it; None at the end."""
        commands = self._commands
        commands.clear_faults()
        commands.clear_events()
        commands.set(**self._before)
        self._before = {}
        if self._next == len(self._scenario.backup):
            return None
        backup = self._scenario.backup[self._next]
        self._next += 1
        for step in backup.before:
            commands(step.command, step.arguments)
        self._before = {name: commands.setting(name) for name in backup.settings}
        commands.set(**backup.settings)
        for fault in backup.faults:
            commands.inject_fault(**dataclasses.asdict(fault))
        for event in backup.events:
            commands.plan_event(**dataclasses.asdict(event))
        return dataclasses.asdict(backup)
