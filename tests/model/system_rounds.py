# SPDX-License-Identifier: Apache-2.0
"""Rounds through the whole system: `sendense up`, its processes, the tunnel, jobs, exports by the hub.

It is asked through the operators' contracts, as the command does. What happens during a backup is planned at
the lab beforehand, for a certain call.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.kit import Lab, World
from tests.model.engine_rounds import SCENARIO
from tests.model.guest import Change
from tests.model.machine import Outcome, Trouble

from sendense.hub.v1 import backup_service_pb2, job_pb2, job_service_pb2, point_service_pb2
from sendense.hub.v1.backup_service_pb2_grpc import BackupServiceStub
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense.hub.v1.point_service_pb2_grpc import PointServiceStub
from sendense_common import rpc
from sendense_lab.client import LabMachine

_AFTER_THE_SNAPSHOT = "QueryChangedDiskAreas"
_ENDED = {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
_WITHIN_S = 120


class SystemRounds:
    """See `Rounds`."""

    troubles: Sequence[str] = (
        "read_error",
        "read_breaks_off",
        "snapshot_refused",
        "changes_refused",
        "session_expires",
        "cancelled",
        "snapshot_removed",
    )
    may_fail = frozenset(
        {"read_error", "read_breaks_off", "snapshot_refused", "cancelled", "snapshot_removed"}
    )

    def __init__(self, world: World, directory: Path) -> None:
        """Args: world: that runs."""
        self._world = world
        self._directory = directory
        scenario = directory / "scenario.toml"
        scenario.write_text(SCENARIO)
        self._lab: Lab = world.lab("model", options=[f"--scenario={scenario}"])
        self._vm: LabMachine
        self._planning = False
        self.round_count = 0

    def new_vm(self, capacities: Sequence[int]) -> list[int]:
        self._vm = self._lab.add_vm(f"vm{uuid.uuid4().hex[:12]}", list(capacities))
        return list(self._vm.disks)

    def command(self, name: str, **arguments: Any) -> Any:
        return self._lab.command(name, vm=self._vm.name, **arguments)

    def settings(self, **values: Any) -> None:
        self._lab.command("set", **values)

    def change(self, key: int, change: Change, offset: int, data: bytes) -> None:
        arguments: dict[str, Any] = {"disk": key, "offset_bytes": offset, "length_bytes": len(data)}
        command = "guest_zero" if change.kind == "zero" else "guest_trim"
        if change.kind == "write":
            command = "guest_write"
            arguments = {"disk": key, "offset_bytes": offset, "data": base64.b64encode(data).decode()}
        if self._planning:
            self._plan(_AFTER_THE_SNAPSHOT, command, 1, **arguments)
        else:
            self.command(command, **arguments)

    def _plan(self, at: str, command: str, call: int, **arguments: Any) -> None:
        if command != "expire_sessions":
            arguments["vm"] = self._vm.name
        self._lab.command("plan_event", at=at, command=command, call=call, arguments=arguments)

    def back_up(self, *, full: bool, trouble: Trouble, meanwhile: Callable[[], None]) -> Outcome:
        self.round_count += 1
        self._planning = True
        meanwhile()
        self._planning = False
        match trouble.name:
            case "read_error" | "read_breaks_off":
                fault = "500" if trouble.name == "read_error" else "drop"
                self._lab.command(
                    "inject_fault",
                    operation="GET /folder",
                    fault=fault,
                    at_call=1 + trouble.moment,
                    times=100,
                )
            case "snapshot_refused":
                self._lab.command(
                    "inject_fault", operation="CreateSnapshot_Task", fault="vim.fault.InvalidState"
                )
            case "changes_refused":
                self._lab.command(
                    "inject_fault", operation="QueryChangedDiskAreas", fault="vim.fault.FileFault",
                    at_call=1 + trouble.moment,
                )  # fmt: skip
            case "session_expires":
                self._plan(_AFTER_THE_SNAPSHOT, "expire_sessions", 1)
            case "snapshot_removed":
                self._plan("GET /folder", "remove_snapshots", 1 + trouble.moment)
        job = asyncio.run(self._job(full=full, cancel_after_s=self._cancel_after_s(trouble)))
        for event in self._lab.command("planned_events"):  # it did not come so far
            if event["command"].startswith("guest_"):
                self._lab.command(event["command"], **event["arguments"])
        for command in ("clear_events", "clear_faults"):
            self._lab.command(command)
        failure = f"{job.failure.reason} {job.failure.message}" if job.failure.reason else ""
        modes = {disk.key: disk.mode for disk in job.disks}
        if job.state == job_pb2.JOB_STATE_SUCCEEDED:
            replaced = any(each.code == "snapshot_replaced" for each in job.warnings)
            return Outcome(job.point_id, "", modes, replaced)
        return Outcome(None, failure or job_pb2.JobState.Name(job.state), modes)

    def _cancel_after_s(self, trouble: Trouble) -> float | None:
        return 0.25 * trouble.moment if trouble.name == "cancelled" else None

    async def _job(self, *, full: bool, cancel_after_s: float | None) -> job_pb2.Job:
        mode = job_pb2.BACKUP_MODE_FULL if full else job_pb2.BACKUP_MODE_AUTO
        async with self._hub() as hub, asyncio.timeout(_WITHIN_S):
            begun = await BackupServiceStub(hub).StartBackup(
                backup_service_pb2.StartBackupRequest(
                    request_id=str(uuid.uuid4()),
                    vm=self._vm.instance_uuid,
                    mode=mode,
                    quiesce=job_pb2.QUIESCE_OFF,
                )
            )
            jobs, job = JobServiceStub(hub), begun.job
            if cancel_after_s is not None:
                await asyncio.sleep(cancel_after_s)
                await jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=job.job_id))
            async for seen in jobs.WatchJob(job_service_pb2.WatchJobRequest(job_id=job.job_id)):
                job = seen.job
            assert job.state in _ENDED
            return job

    def _hub(self) -> Any:
        return rpc.connect(self._world.installation.hub.api_socket)

    def restores(self, point: str, disks: dict[int, bytes]) -> list[str]:
        return asyncio.run(self._restores(point, disks))

    async def _restores(self, point: str, disks: dict[int, bytes]) -> list[str]:
        wrong = []
        async with self._hub() as hub:
            stub = PointServiceStub(hub)
            found = (await stub.GetPoint(point_service_pb2.GetPointRequest(point_id=point))).point
            if {disk.key for disk in found.disks} != set(disks):
                return [f"the point has disks {[disk.key for disk in found.disks]}, the VM had {list(disks)}"]
            for key, content in disks.items():
                path = self._directory / f"{uuid.uuid4().hex}.raw"
                request = point_service_pb2.ExportDiskRequest(
                    point_id=point, disk_key=key, output_path=str(path),
                    format=point_service_pb2.DISK_FORMAT_RAW,
                )  # fmt: skip
                async for _ in stub.ExportDisk(request):
                    pass
                if path.read_bytes() != content:
                    wrong.append(f"disk {key} of {len(content)} bytes differs")
                path.unlink()
        return wrong

    def left(self) -> list[str]:
        root = self._world.repository
        half = [str(each) for each in root.glob("*/*/*/") if not (each / "point.json").is_file()]
        return [*self._lab.left(self._vm.name), *half]
