# SPDX-License-Identifier: Apache-2.0
"""The lab's own door: lines of JSON on a unix socket, to play guest, administrator and bad luck."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import inspect
import json
import logging
import socketserver
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sendense_lab.vcenter.changed_areas import WRONG, AreaSettings
from sendense_lab.vcenter.events import PlannedEvent
from sendense_lab.vcenter.faults import FOLDER_FAULTS, PlannedFault
from sendense_lab.vcenter.machine import Machine
from sendense_lab.vcenter.server import Vcenter
from sendense_lab.vcenter.soap import fault
from sendense_lab.vcenter.virtual_disk import DiskSpec

log = logging.getLogger(__name__)

_OF_DATACENTER = (
    "quiesce_fails",
    "datastore_type",
    "free_bytes",
    "snapshot_limit",
    "consolidation_seconds",
    "shared_disks_refuse_snapshots",
)
_OF_VCENTER = (
    "lock_after",
    "tells_locked",
    "password_expired",
    "missing_privileges",
    "missing_privileges_on",
    "session_calls",
    "session_idle_seconds",
    "read_seconds",
    "login_seconds",
)
SETTINGS = (
    *(each.name for each in dataclasses.fields(AreaSettings)),
    *_OF_DATACENTER,
    *_OF_VCENTER,
    "objects_per_page",
)
"""What `set` knows."""


class Commands:
    """What can be asked for; each method is one command, its result JSON."""

    def __init__(self, vcenter: Vcenter) -> None:
        self._vcenter = vcenter
        vcenter.events.play = lambda event: self(event.command, event.arguments)
        self.show_certificate: Callable[[str], None] = _no_certificates
        """Of the web server, if there is one."""
        self.play_on: Callable[[], dict[str, Any] | None] = lambda: None
        """Of the scenario, if there is one."""

    def add_vm(
        self, name: str, disks: list[dict[str, Any]], host: str = "", datastore: str = "", on: bool = True
    ) -> dict[str, Any]:
        """A VM with disks; see DiskSpec."""
        specs = [DiskSpec(**disk) for disk in disks]
        machine = Machine(self._vcenter.datacenter, name, specs, host=host, datastore=datastore)
        machine.power = "poweredOn" if on else "poweredOff"
        return {
            "moref": machine.moid,
            "instance_uuid": machine.instance_uuid,
            "disks": [disk.key for disk in machine.disks],
        }

    def guest_write(self, vm: str, disk: int, offset_bytes: int, data: str) -> None:
        """The guest writes (base64)."""
        self._machine(vm).disk(disk).files.write(offset_bytes, base64.b64decode(data))

    def guest_fill(self, vm: str, disk: int, offset_bytes: int, length_bytes: int, seed: str = "") -> None:
        """The guest writes noise, the same for the same seed."""
        noise = hashlib.shake_128(f"{seed} {offset_bytes}".encode()).digest(length_bytes)
        self._machine(vm).disk(disk).files.write(offset_bytes, noise)

    def guest_zero(self, vm: str, disk: int, offset_bytes: int, length_bytes: int) -> None:
        """The guest writes zeroes."""
        self._machine(vm).disk(disk).files.write(offset_bytes, bytes(length_bytes))

    def guest_trim(self, vm: str, disk: int, offset_bytes: int, length_bytes: int) -> None:
        """The guest gives whole granules of 64 KiB back; they read as zeroes and are in use no more."""
        self._machine(vm).disk(disk).files.trim(offset_bytes, length_bytes)

    def guest_read(self, vm: str, disk: int, offset_bytes: int, length_bytes: int) -> str:
        """What the guest reads (base64)."""
        files = self._machine(vm).disk(disk).files
        return base64.b64encode(files.read(offset_bytes, length_bytes)).decode()

    def hold_frozen(self, vm: str, directory: str) -> None:
        """Keeps a copy of each disk at each snapshot from now on: DIRECTORY/<snapshot>-<disk>.raw."""
        self._machine(vm).hold_frozen = Path(directory)

    def disk_sha256(self, vm: str, disk: int) -> str:
        """Of what the guest sees now, hex."""
        files = self._machine(vm).disk(disk).files
        digest = hashlib.sha256()
        for offset in range(0, files.capacity_bytes, 1 << 20):
            digest.update(files.read(offset, 1 << 20))
        return digest.hexdigest()

    def state(self, vm: str) -> dict[str, Any]:
        """Snapshots and delta files of a VM."""
        machine = self._machine(vm)
        return {
            "snapshots": [
                {"moref": each.moid, "name": each.node.name, "description": each.description}
                for each in machine.snapshots
            ],
            "deltas": machine.files(),
            "changed_block_tracking": machine.tracking,
        }

    def counters(self) -> dict[str, int]:
        """How often things happened, and "sessions" that are open."""
        self._vcenter.expire_silent()
        return {**self._vcenter.counters, "sessions": len(self._vcenter.sessions)}

    def inject_fault(self, **planned: Any) -> None:
        """See PlannedFault."""
        order = PlannedFault(**planned)
        if order.operation != "GET /folder":
            fault(order.fault, "")  # there must be such a fault
        elif order.fault not in FOLDER_FAULTS:
            raise ValueError(f"GET /folder fails with one of {', '.join(FOLDER_FAULTS)}")
        self._vcenter.faults.add(order)

    def clear_faults(self) -> None:
        """No more."""
        self._vcenter.faults.clear()

    def plan_event(self, **planned: Any) -> None:
        """A command that is done by itself at a later call; see PlannedEvent."""
        event = PlannedEvent(**planned)
        inspect.signature(self._command(event.command)).bind(**event.arguments)
        self._vcenter.events.add(event)

    def planned_events(self) -> list[dict[str, Any]]:
        """Those that have not happened yet."""
        return [dataclasses.asdict(each) for each in self._vcenter.events.waiting()]

    def clear_events(self) -> None:
        """No more."""
        self._vcenter.events.clear()

    def delay_task(self, method: str, seconds: float) -> None:
        """Tasks of a method take so much longer, also those that run; 0 lets them end."""
        self._vcenter.registry.task_delays_s[method] = seconds

    def running_tasks(self) -> list[str]:
        """Methods whose tasks have not ended."""
        return self._vcenter.registry.running_tasks()

    def set(self, **settings: Any) -> None:
        """Any of the settings below, by name."""
        for name, value in settings.items():
            if name not in SETTINGS or (name == "areas_wrong" and value and value not in WRONG):
                raise ValueError(f"there is no setting {name} {value!r}")
            setattr(self._holder(name), name, value)

    def setting(self, name: str) -> Any:
        """The value of a setting."""
        if name not in SETTINGS:
            raise ValueError(f"there is no setting {name}")
        return getattr(self._holder(name), name)

    def _holder(self, setting: str) -> object:
        if setting in _OF_DATACENTER:
            return self._vcenter.datacenter
        if setting in _OF_VCENTER:
            return self._vcenter
        return self._vcenter.registry if setting == "objects_per_page" else self._vcenter.datacenter.areas

    def set_password(self, password: str) -> None:
        """For logins from now on."""
        self._vcenter.password = password
        self._vcenter.unlock()

    def set_certificate(self, kind: str) -> None:
        """What new connections see: "good", or one of KINDS in certificates.py."""
        self.show_certificate(kind)

    def unlock_account(self) -> None:
        """An administrator unlocks the account."""
        self._vcenter.unlock()

    def expire_sessions(self) -> None:
        """All sessions end, as after half an hour of silence."""
        self._vcenter.sessions.clear()

    def remove_snapshots(self, vm: str, by_task: bool = False) -> None:
        """An administrator removes all snapshots of a VM, at once or by a task (see `delay_task`)."""
        snapshots = self._machine(vm).snapshots
        if by_task:
            snapshots[0].RemoveSnapshot_Task(None, True, True)
            return
        for snapshot in reversed(snapshots):
            snapshot.merge()

    def take_snapshot(self, vm: str, name: str, description: str = "") -> str:
        """An administrator takes a snapshot."""
        return str(self._machine(vm)._take(name, description, quiesce=False)._moId)  # noqa: SLF001

    def reset_tracking(self, vm: str, disk: int = 0) -> None:
        """Change tracking of one disk, or all, begins anew with other IDs, as after a crash of the host."""
        for each in self._machine(vm).disks:
            if disk in {0, each.key}:
                each.tracking_id = ""

    def resize_disk(self, vm: str, disk: int, capacity_bytes: int) -> None:
        """An administrator makes a disk larger."""
        self._machine(vm).resize_disk(disk, capacity_bytes)

    def add_disk(self, vm: str, **disk: Any) -> int:
        """An administrator adds a disk; see DiskSpec. Gives its device key."""
        return self._machine(vm).add_disk(DiskSpec(**disk)).key

    def remove_disk(self, vm: str, disk: int) -> None:
        """An administrator takes a disk away."""
        self._machine(vm).remove_disk(disk)

    def move_disk(self, vm: str, disk: int, datastore: str) -> None:
        """Storage vMotion of one disk: its path changes, its identity and change tracking stay."""
        self._machine(vm).move_disk(disk, datastore)

    def set_free_space(self, datastore: str, free_bytes: int) -> None:
        """What a datastore says is free."""
        self._vcenter.datacenter.datastore(datastore).free_bytes = free_bytes

    def replace_disk(self, vm: str, disk: int, capacity_bytes: int) -> None:
        """An administrator removes a disk and puts an empty one in its place."""
        self._machine(vm).replace_disk(disk, capacity_bytes)

    def set_power(self, vm: str, on: bool) -> None:
        """The VM is switched on or off."""
        self._machine(vm).power = "poweredOn" if on else "poweredOff"

    def set_machine(
        self,
        vm: str,
        tools_running: bool = True,
        virtual_tpm: bool = False,
        hardware_version: str = "vmx-20",
    ) -> None:
        """What else a VM is like."""
        machine = self._machine(vm)
        machine.tools_running, machine.virtual_tpm = tools_running, virtual_tpm
        machine.hardware_version = hardware_version

    def mark_template(self, vm: str, template: bool) -> None:
        """The VM becomes a template, or a VM again."""
        self._machine(vm).template = template

    def set_consolidation_needed(self, vm: str, needed: bool) -> None:
        """What vSphere says about leftover deltas."""
        self._machine(vm).consolidation_needed = needed

    def next_backup(self) -> dict[str, Any] | None:
        """Of a scenario: plays what comes before its next backup, and gives that one; null at the end."""
        return self.play_on()

    def __call__(self, command: str, arguments: dict[str, Any]) -> Any:
        """One command by its name."""
        with self._vcenter.registry.lock:
            return self._command(command)(**arguments)

    def _command(self, name: str) -> Callable[..., Any]:
        if name not in COMMANDS:
            raise ValueError(f"there is no command {name}")
        command: Callable[..., Any] = getattr(self, name)
        return command

    def _machine(self, vm: str) -> Machine:
        for machine in self._vcenter.datacenter.machines:
            if vm in {machine.shown_name, machine.moid, machine.instance_uuid}:
                return machine
        raise ValueError(f"there is no VM {vm}")


def _no_certificates(kind: str) -> None:
    raise ValueError(f"nothing shows a certificate here, nor a {kind} one")


COMMANDS = {
    name: function
    for name, function in inspect.getmembers(Commands, inspect.isfunction)
    if not name.startswith("_")
}
"""All commands by name."""


class _Handler(socketserver.StreamRequestHandler):
    server: ControlServer

    def handle(self) -> None:
        for line in self.rfile:
            try:
                request = json.loads(line)
                result = self.server.commands(request["command"], request.get("arguments", {}))
                answer = {"result": result}
            except Exception as error:
                log.exception("a command was refused")
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class ControlServer(socketserver.ThreadingUnixStreamServer):
    """Serves commands on a unix socket."""

    daemon_threads = True

    def __init__(self, path: Path, commands: Commands) -> None:
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Handler)
        self._path = path
        self.commands = commands

    def server_close(self) -> None:
        """Nothing is left of it."""
        super().server_close()
        self._path.unlink(missing_ok=True)
