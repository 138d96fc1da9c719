# SPDX-License-Identifier: Apache-2.0
"""Rounds in this process: vSphere by SOAP, the agent's plan, the copy engine in a thread, the repository.

The source is nbdkit on the frozen base file, the target a real qemu-nbd on a layer that the hub's code made.
Left out are the worker's process, the tunnel and the hub's jobs; `system_rounds` has those.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.integration.lab.kit import PASSWORD, USERNAME
from tests.integration.vsphere.kit import again
from tests.model.guest import Change
from tests.model.machine import Outcome, Trouble

from sendense.agent.v1 import backup_pb2 as pb
from sendense.hub.v1 import job_pb2
from sendense_agent.datapath import CopyOrder, Source
from sendense_agent.datapath.mover.engine import CopyEngine
from sendense_agent.vsphere import (
    Machine,
    Session,
    Snapshot,
    VcenterTarget,
    VirtualDisk,
    find_machine,
    open_session,
)
from sendense_agent.worker.copying import confirm
from sendense_agent.worker.plan import DiskPlan, plan_disk
from sendense_common.errors import SendenseError
from sendense_common.tunnel import TunnelConfig
from sendense_hub.jobs import point_record
from sendense_hub.repository import (
    DiskDocument,
    LayerRef,
    PointDocument,
    PointWriter,
    Record,
    Repository,
    open_repository,
    verify_point,
)
from sendense_lab.client import LabClient, LabMachine

T = TypeVar("T")

HUB = "hub-of-the-model"
SCENARIO = """
title = "A VM whose disks move between two datastores"
[outside]
cannot = "Only a model's stage."
[[datastores]]
name = "datastore1"
[[datastores]]
name = "datastore2"
"""
_NO_TUNNEL = TunnelConfig("h", 1, "a", Path("k"), "key")


class CancelledRoundError(Exception):
    """Somebody cancelled the backup."""


class Stage:
    """A lab, a session, a repository, and the programs that run between rounds."""

    def __init__(self, directory: Path, runner: asyncio.Runner) -> None:
        """Args: directory: with a short path; runner: whose loop everything lives in."""
        self._directory = directory
        self._runner = runner
        self._stack = contextlib.AsyncExitStack()
        self._sources: dict[Path, tuple[subprocess.Popen[bytes], Path, Path]] = {}
        self.lab: LabClient
        self.session: Session
        self.repository: Repository

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        """In the loop, to its end."""
        return self._runner.run(doing)

    def __enter__(self) -> Stage:
        self.run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        for child, *_paths in self._sources.values():
            child.kill()
            child.wait()
        self.run(self._stack.aclose())

    async def _open(self) -> None:
        scenario = self._directory / "scenario.toml"
        scenario.write_text(SCENARIO)
        self.lab = await self._stack.enter_async_context(
            LabClient.start(self._directory / "lab", options=[f"--scenario={scenario}"])
        )
        target = VcenterTarget("lab", self.lab.host, self.lab.port, ca_pem=self.lab.ca_file.read_text())
        self.session = await self._stack.enter_async_context(
            open_session(target, USERNAME, PASSWORD, again=again)
        )
        self.repository = await open_repository("default", self._directory / "repository")

    @property
    def run_dir(self) -> Path:
        """For sockets."""
        return self._directory

    def source(self, disk: VirtualDisk) -> tuple[Source, Path]:
        """The frozen file of a disk, and the file whose presence makes every read of it fail."""
        name = disk.file_name.rpartition("/")[2].removesuffix(".vmdk").partition("-00")[0]
        (base,) = (self._directory / "lab").rglob(f"{name}-flat.vmdk")
        if base not in self._sources:
            socket = self._directory / f"n{len(self._sources)}"
            broken = socket.with_suffix(".broken")
            child = subprocess.Popen(
                ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", f"--unix={socket}",
                 "--filter=error", "file", str(base), "error-pread=EIO", "error-pread-rate=50%",
                 f"error-pread-file={broken}"],
            )  # fmt: skip
            self._sources[base] = child, socket, broken
            deadline = time.monotonic() + 30
            while not socket.exists():
                assert child.poll() is None, "nbdkit has ended"
                assert time.monotonic() < deadline, "nbdkit does not listen"
                time.sleep(0.01)
        _, socket, broken = self._sources[base]
        return Source(socket, "", disk.capacity_bytes), broken


class EngineRounds:
    """See `Rounds`."""

    troubles: Sequence[str] = (
        "read_error",
        "snapshot_refused",
        "changes_refused",
        "session_expires",
        "cancelled",
        "snapshot_removed",
    )
    may_fail = frozenset({"read_error", "snapshot_refused", "cancelled", "snapshot_removed"})

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._vm: LabMachine
        self._newest: dict[int, PointDocument] = {}
        """By device key: the newest complete point that has the disk."""
        self._points: set[str] = set()
        self.round_count = 0
        self.disk_count = 0
        self.modes: dict[str, int] = {}

    def new_vm(self, capacities: Sequence[int]) -> list[int]:
        self._vm = self._stage.run(self._stage.lab.add_vm(f"vm{uuid.uuid4().hex[:12]}", list(capacities)))
        self._newest = {}
        return list(self._vm.disks)

    def command(self, name: str, **arguments: Any) -> Any:
        return self._stage.run(self._stage.lab.command(name, vm=self._vm.name, **arguments))

    def settings(self, **values: Any) -> None:
        self._stage.run(self._stage.lab.command("set", **values))

    def change(self, key: int, change: Change, offset: int, data: bytes) -> None:
        self._stage.run(self._change(key, change.kind, offset, data))

    async def _change(self, key: int, kind: str, offset: int, data: bytes) -> None:
        lab, name = self._stage.lab, self._vm.name
        match kind:
            case "write":
                await lab.guest_write(name, key, offset, data)
            case "zero":
                await lab.guest_zero(name, key, offset, len(data))
            case "trim":
                await lab.command(
                    "guest_trim", vm=name, disk=key, offset_bytes=offset, length_bytes=len(data)
                )

    def left(self) -> list[str]:
        found = [
            f"snapshot {each['name']}" for each in self._stage.run(self._stage.lab.snapshots(self._vm.name))
        ]
        found += [
            f"half a point: {each}" for each in self._stage.repository.directories()
            if not (self._stage.repository.root / each / "point.json").is_file()
        ]  # fmt: skip
        return found

    def restores(self, point: PointDocument, disks: dict[int, bytes]) -> list[str]:
        if {disk.key for disk in point.disks} != set(disks):
            return [f"the point has disks {[disk.key for disk in point.disks]}, the VM had {list(disks)}"]
        wrong = []
        for key, content in disks.items():
            layer = self._stage.repository.layer_path(point, key)
            size = int.from_bytes(layer.read_bytes()[24:32])
            raw = self._stage.run_dir / "expected.raw"
            raw.write_bytes(content)
            compared = subprocess.run(
                ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), str(layer)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if size != len(content) or compared.returncode:
                wrong.append(f"disk {key} of {len(content)} bytes: {size} bytes, {compared.stdout.strip()}")
        return wrong

    def verified(self) -> None:
        """The newest points are what their ledgers say."""
        for point in {each.point_id: each for each in self._newest.values()}.values():
            self._stage.run(_verified(self._stage.repository, point, self._stage.run_dir))

    def back_up(self, *, full: bool, trouble: Trouble, meanwhile: Callable[[], None]) -> Outcome:
        self.round_count += 1
        if trouble.name == "snapshot_refused":
            self._inject("CreateSnapshot_Task", "vim.fault.InvalidState")
        try:
            return self._round(full=full, trouble=trouble, meanwhile=meanwhile)
        except (SendenseError, CancelledRoundError) as error:
            return Outcome(None, f"{type(error).__name__} {error}", {})
        finally:
            self._stage.run(self._stage.lab.command("clear_faults"))

    def _inject(self, operation: str, fault: str, at_call: int = 1) -> None:
        self._stage.run(self._stage.lab.inject_fault(operation, fault, at_call=at_call))

    def _round(self, *, full: bool, trouble: Trouble, meanwhile: Callable[[], None]) -> Outcome:
        run, job_id = self._stage.run, str(uuid.uuid4())
        machine, just_enabled, snapshot = run(self._begin(job_id))
        try:
            meanwhile()
            match trouble.name:
                case "session_expires":
                    run(self._stage.lab.command("expire_sessions"))
                case "changes_refused":
                    self._inject("QueryChangedDiskAreas", "vim.fault.FileFault", 1 + trouble.moment)
            plans = run(self._plan(machine, snapshot, full=full, just_enabled=just_enabled))
            if trouble.name == "snapshot_removed":
                self.command("remove_snapshots")
            point = run(self._copy(job_id, machine, snapshot, plans, trouble))
        finally:
            run(snapshot.remove())
        return Outcome(point, "", {disk.key: disk.mode for disk in point.disks})

    async def _begin(self, job_id: str) -> tuple[Machine, bool, Snapshot]:
        machine = await find_machine(self._stage.session, self._vm.instance_uuid, self._vm.name)
        just_enabled = await machine.enable_changed_block_tracking()
        await machine.refresh()
        return machine, just_enabled, await machine.create_snapshot(HUB, job_id, pb.QUIESCE_MODE_OFF)

    async def _plan(
        self, machine: Machine, snapshot: Snapshot, *, full: bool, just_enabled: bool
    ) -> list[DiskPlan]:
        frozen = {disk.key: disk for disk in snapshot.disks}
        plans = []
        for disk in machine.preflight().eligible:
            known = None if full else self._newest.get(disk.key)
            previous = _previous(known.disk(disk.key)) if known else None
            plans.append(
                await plan_disk(snapshot, frozen[disk.key], previous, tracking_just_enabled=just_enabled)
            )
        return plans

    async def _copy(
        self, job_id: str, machine: Machine, snapshot: Snapshot, plans: list[DiskPlan], trouble: Trouble
    ) -> PointDocument:
        vcenter = self._stage.session.vcenter_uuid
        point_id = str(uuid.uuid4())
        writer = await PointWriter.begin(self._stage.repository, vcenter, machine.instance_uuid, point_id)
        layers: dict[int, LayerRef] = {}
        parents: dict[int, str] = {}
        job = job_pb2.Job(job_id=job_id, vcenter_name="lab")
        try:
            for number, plan in enumerate(plans):
                if trouble.name == "cancelled" and trouble.moment % (len(plans) + 1) == number:
                    raise CancelledRoundError
                key = plan.disk.key
                parent = self._parent(plan)
                if parent is not None:
                    parents[key] = self._newest[key].point_id
                layers[key] = await writer.create_layer(key, plan.disk.capacity_bytes, parent)
                copied = await self._copy_disk(writer, layers[key], snapshot, plan, parent, trouble)
                job.disks.add(key=key, copied_bytes=copied, mode_reason=plan.reason)
            if trouble.name == "cancelled":
                raise CancelledRoundError
            await confirm(snapshot, machine.name)
            message = pb.BackupPlan(
                vcenter_uuid=vcenter, vm_instance_uuid=machine.instance_uuid, vm_name=machine.name,
                disks=[plan.message() for plan in plans],
            )  # fmt: skip
            document = await writer.commit(
                point_record.document(
                    job,
                    message,
                    point_id=point_id,
                    hub_id=HUB,
                    snapshot_time_us=1,
                    layers=layers,
                    parents=parents,
                    newest_us=0,
                )
            )
        finally:
            await writer.discard()
        self._newest.update({disk.key: document for disk in document.disks})
        return document

    def _parent(self, plan: DiskPlan) -> LayerRef | None:
        """The layer below; None for a full."""
        if plan.mode == pb.DISK_MODE_FULL:
            return None
        below = self._newest[plan.disk.key]
        directory = self._stage.repository.directory_of(
            below.vcenter_uuid, below.vm_instance_uuid, below.point_id
        )
        disk = below.disk(plan.disk.key)
        return LayerRef(directory, disk.key, disk.layer_file, disk.capacity_bytes)

    async def _copy_disk(
        self,
        writer: PointWriter,
        layer: LayerRef,
        snapshot: Snapshot,
        plan: DiskPlan,
        parent: LayerRef | None,
        trouble: Trouble,
    ) -> int:
        """Gives the bytes that were written as data."""
        self.disk_count += 1
        name = f"e-{plan.disk.key}"
        export = await writer.open_export(layer, name, self._stage.run_dir / name, 2)
        digests_name = ""
        if plan.mode == pb.DISK_MODE_COMPARED:
            assert parent is not None
            digests_name = "digests"
            # Where the engine looks for it: beside the socket of the layer's export.
            await writer.open_digests(
                parent, digests_name, export.socket.with_name(f"{export.socket.stem}.d")
            )
        source, broken = self._stage.source(plan.disk)
        told: list[pb.RunBackupResponse] = []
        engine = CopyEngine(
            CopyOrder(
                disk_key=plan.disk.key, label=plan.disk.label, capacity_bytes=plan.disk.capacity_bytes,
                read=plan.read, zero=plan.zero, source=source, tunnel=_NO_TUNNEL, export_name=name,
                local_socket=export.socket, write_zeroes=parent is not None, checkpoint_bytes=1 << 20,
                digests_export_name=digests_name,
            ),
            told.append,
            lambda: 0,
        )  # fmt: skip
        if trouble.name == "read_error":
            broken.touch()
        try:
            await asyncio.to_thread(engine.run)
        finally:
            broken.unlink(missing_ok=True)
        for event in told:
            if event.HasField("checkpoint"):
                await confirm(snapshot, self._vm.name)
                records = [Record(e.offset_bytes, e.length_bytes, e.sha256) for e in event.checkpoint.records]
                await writer.append(plan.disk.key, records)
        (done,) = [event.disk_done for event in told if event.HasField("disk_done")]
        return done.progress.copied_bytes


def _previous(disk: DiskDocument) -> pb.PreviousDisk:
    return pb.PreviousDisk(
        key=disk.key,
        disk_object_id=disk.disk_object_id,
        backing_uuid=disk.backing_uuid,
        capacity_bytes=disk.capacity_bytes,
        change_id=disk.change_id,
    )


async def _verified(repository: Repository, point: PointDocument, run_dir: Path) -> None:
    async for _ in verify_point(repository, point, run_dir):
        pass
