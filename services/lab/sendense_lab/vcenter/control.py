# SPDX-License-Identifier: Apache-2.0
"""The lab's own door: lines of JSON on a unix socket, to play guest, administrator and bad luck."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import socketserver
from pathlib import Path
from typing import Any

from sendense_lab.vcenter.changed_areas import WRONG
from sendense_lab.vcenter.faults import FOLDER_FAULTS, PlannedFault
from sendense_lab.vcenter.machine import Machine
from sendense_lab.vcenter.server import Vcenter
from sendense_lab.vcenter.soap import fault
from sendense_lab.vcenter.virtual_disk import DiskSpec

log = logging.getLogger(__name__)


class Commands:
    """What can be asked for; each method is one command, its result JSON."""

    def __init__(self, vcenter: Vcenter) -> None:
        self._vcenter = vcenter

    def add_vm(self, name: str, disks: list[dict[str, Any]]) -> dict[str, Any]:
        """A VM with disks; see DiskSpec."""
        machine = Machine(self._vcenter.datacenter, name, [DiskSpec(**disk) for disk in disks])
        return {
            "moref": machine.moid,
            "instance_uuid": machine.instance_uuid,
            "disks": [disk.key for disk in machine.disks],
        }

    def guest_write(self, vm: str, disk: int, offset_bytes: int, data: str) -> None:
        """The guest writes (base64)."""
        self._machine(vm).disk(disk).files.write(offset_bytes, base64.b64decode(data))

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

    def delay_task(self, method: str, seconds: float) -> None:
        """Tasks of a method take so much longer, also those that run; 0 lets them end."""
        self._vcenter.registry.task_delays_s[method] = seconds

    def running_tasks(self) -> list[str]:
        """Methods whose tasks have not ended."""
        return self._vcenter.registry.running_tasks()

    def set(self, **settings: Any) -> None:
        """Any of the settings below, by name."""
        datacenter = self._vcenter.datacenter
        known: dict[str, object] = {
            **dict.fromkeys(
                ("areas_per_page", "window_bytes", "used_areas", "areas_wrong"), datacenter.areas
            ),
            **dict.fromkeys(("quiesce_fails", "datastore_type"), datacenter),
            "objects_per_page": self._vcenter.registry,
            "lock_after": self._vcenter,
            "missing_privileges": self._vcenter,
        }
        for name, value in settings.items():
            if name not in known or (name == "areas_wrong" and value and value not in WRONG):
                raise ValueError(f"there is no setting {name} {value!r}")
            setattr(known[name], name, value)

    def set_password(self, password: str) -> None:
        """For logins from now on."""
        self._vcenter.password = password
        self._vcenter.unlock()

    def expire_sessions(self) -> None:
        """All sessions end, as after half an hour of silence."""
        self._vcenter.sessions.clear()

    def remove_snapshots(self, vm: str) -> None:
        """An administrator removes all snapshots of a VM."""
        for snapshot in reversed(self._machine(vm).snapshots):
            snapshot.merge()

    def take_snapshot(self, vm: str, name: str) -> str:
        """An administrator takes a snapshot."""
        return str(self._machine(vm)._take(name, "", quiesce=False)._moId)  # noqa: SLF001

    def reset_tracking(self, vm: str) -> None:
        """Change tracking begins anew, with other IDs, as after a crash of the host."""
        for disk in self._machine(vm).disks:
            disk.tracking_id = ""

    def resize_disk(self, vm: str, disk: int, capacity_bytes: int) -> None:
        """An administrator makes a disk larger."""
        self._machine(vm).resize_disk(disk, capacity_bytes)

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

    def _machine(self, vm: str) -> Machine:
        for machine in self._vcenter.datacenter.machines:
            if vm in {machine.shown_name, machine.moid, machine.instance_uuid}:
                return machine
        raise ValueError(f"there is no VM {vm}")


class _Handler(socketserver.StreamRequestHandler):
    server: ControlServer

    def handle(self) -> None:
        for line in self.rfile:
            try:
                request = json.loads(line)
                if request["command"].startswith("_"):
                    raise ValueError(f"there is no command {request['command']}")
                with self.server.vcenter.registry.lock:
                    result = getattr(self.server.commands, request["command"])(**request.get("arguments", {}))
                answer = {"result": result}
            except Exception as error:
                log.exception("a command was refused")
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class ControlServer(socketserver.ThreadingUnixStreamServer):
    """Serves commands on a unix socket."""

    daemon_threads = True

    def __init__(self, path: Path, vcenter: Vcenter) -> None:
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Handler)
        self.vcenter = vcenter
        self.commands = Commands(vcenter)
