# SPDX-License-Identifier: Apache-2.0
"""One attempt of a backup job: the hub's half of the conversation with the agent.

Until the commit mark is set, any failure leaves nothing: no export, no layer, no row, no snapshot. From then
on the point is complete whatever happens, and what is left to do is the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator

import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import point_service_pb2
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, points, vcenters
from sendense_hub.clients.backup_stream import BackupStream
from sendense_hub.domain import job_rules, plan_rules
from sendense_hub.jobs import job_changes, point_record
from sendense_hub.jobs.board import Change, LiveJob
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import LayerRef, PointWriter, Record, Repository
from sendense_hub.repository.point_writer import check_chain

log = logging.getLogger(__name__)

_ORPHAN_TIMEOUT_S = 120
_DISMISS_WITHIN_S = 60.0
_CONNECTIONS = 2
# A repository with less than this when a write failed was full.
_FULL_BELOW_BYTES = 16 * 1024 * 1024

_QUIESCE = {
    pb.QUIESCE_REQUIRE: agent.QUIESCE_MODE_REQUIRE,
    pb.QUIESCE_TRY: agent.QUIESCE_MODE_TRY,
    pb.QUIESCE_OFF: agent.QUIESCE_MODE_OFF,
}

Previous = dict[int, tuple[point_service_pb2.RestorePoint, point_service_pb2.PointDisk]]


class BackupAttempt:
    """Runs once. After `run` returned or raised, `clean_up` must be awaited."""

    def __init__(self, workshop: Workshop, live: LiveJob) -> None:
        self._workshop = workshop
        self._live = live
        self._repository: Repository = workshop.repository(live.job.repository_name)
        self._previous: Previous = {}
        self._stream: BackupStream | None = None
        self._writer: PointWriter | None = None
        self._layers: dict[int, LayerRef] = {}
        self._export_names: list[str] = []
        self._plan: agent.BackupPlan | None = None
        self._swept: list[str] = []
        self._snapshot_time_us = 0
        self._copying_since = 0.0
        self._committing = False
        self.point_id = str(uuid.uuid4())
        self.committed = False
        """Whether the point is complete."""
        self.snapshot_maybe_left = False
        """Whether the agent may have left a snapshot, or cannot be asked."""

    # --- the way forward ---

    async def run(self) -> None:
        """Returns when the point is complete and the snapshot gone, or known to be left.

        Raises:
            SendenseError: why it did not work.
        """
        conversation = asyncio.create_task(self._converse())
        stop = asyncio.create_task(self._live.stop_requested.wait())
        try:
            await asyncio.wait({conversation, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not conversation.done() and not self._committing:
                conversation.cancel()
                await asyncio.gather(conversation, return_exceptions=True)
                assert self._live.stop_cause is not None
                raise self._live.stop_cause
            await conversation
        except SendenseError as error:
            if self._stream is not None and self._stream.begun and self.snapshot_maybe_left:
                await self._dismiss(error)
            raise
        finally:
            for task in (conversation, stop):
                task.cancel()
            await asyncio.gather(conversation, stop, return_exceptions=True)

    async def _converse(self) -> None:
        async with self._prepared() as start:
            self._stream = BackupStream(
                self._workshop.sites,
                self._live.job.site_name,
                start,
                give_up_after_s=2 * _ORPHAN_TIMEOUT_S,
            )
            self.snapshot_maybe_left = True
            async with contextlib.aclosing(self._stream.events()) as events:
                async for event in events:
                    await self._take(event)
                    if event.seq:
                        await self._stream.ack(event.seq)

    @contextlib.asynccontextmanager
    async def _prepared(self) -> AsyncIterator[agent.BackupStart]:
        """The first message; the points it builds on are locked while the block runs."""
        job, catalog = self._live.job, self._workshop.catalog
        with telemetry.span("prepare", vm=job.vm_name):
            self._repository.space()
            vcenter = await catalog.run(lambda connection: vcenters.get(connection, job.vcenter_name))
            if job.mode != pb.BACKUP_MODE_FULL:
                self._previous = await catalog.run(
                    lambda connection: points.newest_disks(
                        connection, vcenter.instance_uuid, job.vm_instance_uuid, job.repository_name
                    )
                )
                await self._drop_unusable_chains()
        with self._workshop.locks.reading(point.point_id for point, _ in self._previous.values()):
            dead = [
                each
                for each in await catalog.run(cleanups.listed)
                if (each.vcenter_name, each.vm_instance_uuid) == (job.vcenter_name, job.vm_instance_uuid)
            ]
            self._swept = [each.job_id for each in dead]
            self._workshop.sites.socket(job.site_name)
            yield agent.BackupStart(
                job_id=job.job_id,
                attempt=job.attempt,
                hub_id=catalog.hub_id,
                vcenter=await self._workshop.sites.access(
                    vcenter, operation_pb2.OPERATION_BACKUP, job.job_id
                ),
                vm_instance_uuid=job.vm_instance_uuid,
                vm_name=job.vm_name,
                quiesce=_QUIESCE[job.quiesce],
                previous_disks=[
                    agent.PreviousDisk(
                        key=disk.key,
                        disk_object_id=disk.disk_object_id,
                        backing_uuid=disk.backing_uuid,
                        capacity_bytes=disk.capacity_bytes,
                        change_id=disk.change_id,
                    )
                    for _, disk in self._previous.values()
                ],
                require_incremental=job.mode == pb.BACKUP_MODE_INCREMENTAL,
                dead_snapshots=[
                    agent.JobSnapshot(job_id=each.job_id, vm_instance_uuid=each.vm_instance_uuid)
                    for each in dead
                ],
                orphan_timeout=Duration(seconds=_ORPHAN_TIMEOUT_S),
            )

    async def _drop_unusable_chains(self) -> None:
        """A damaged chain is not built upon: such a disk is copied in full, and the job says why."""
        for key, (point, _) in list(self._previous.items()):
            try:
                document = await asyncio.to_thread(self._repository.read_document, point.directory)
                chain = await asyncio.to_thread(self._repository.chain, document, key)
                await check_chain(self._repository, chain, key)
            except SendenseError as error:
                if error.reason not in {Reason.REASON_POINT_CORRUPT, Reason.REASON_POINT_INCOMPLETE}:
                    raise
                del self._previous[key]
                await self._live.change(job_changes.warn("chain_unusable", error.message, key))

    async def _take(self, event: agent.RunBackupResponse) -> None:
        """One event of the agent."""
        live = self._live
        match event.WhichOneof("event"):
            case "phase":
                await live.change(
                    job_changes.enter(job_rules.PHASES.get(event.phase.phase, pb.JOB_PHASE_UNSPECIFIED))
                )
            case "plan":
                self._snapshot_time_us = event.time.ToMicroseconds()
                await self._take_plan(event.plan)
            case "progress":
                await live.count(job_changes.progress(event.progress, self._copying_s()))
            case "checkpoint":
                await self._take_checkpoint(event.checkpoint)
            case "warning":
                said = event.warning
                await live.change(job_changes.warn(said.code, said.message, said.disk_key))
            case "disk_done":
                await live.change(job_changes.disk_done(event.disk_done))
            case "copied":
                await self._commit()
            case "done":
                self.snapshot_maybe_left = not event.done.snapshot_removed
                if not self.committed:
                    raise SendenseError(
                        Reason.REASON_INTERNAL, "the agent said that it is done before the point was complete"
                    )
            case "failed":
                self.snapshot_maybe_left = event.failed.snapshot_left
                if not self.committed:
                    raise self._explained(SendenseError.from_failure(event.failed.failure))
            case unknown:
                log.warning(
                    "job %s: the agent sent %s, which this hub does not know", live.job.job_id, unknown
                )

    async def _take_plan(self, plan: agent.BackupPlan) -> None:
        """The snapshot exists: makes layers and exports, and says where they are."""
        job = self._live.job
        if self._plan is not None:
            return  # said again after a rejoin
        self._plan = plan
        await self._live.change(job_changes.plan(plan))
        previous = {key: disk for key, (_, disk) in self._previous.items()}
        vcenter_uuid = next((point.vcenter_uuid for point, _ in self._previous.values()), "")
        plan_rules.check_plan(
            plan,
            vcenter_uuid=vcenter_uuid,
            vm_instance_uuid=job.vm_instance_uuid,
            previous=previous,
            incremental_required=job.mode == pb.BACKUP_MODE_INCREMENTAL,
        )
        plan_rules.check_space(plan.disks, self._repository.space().free_bytes)
        await self._learn(plan)
        with telemetry.span("create layers", disks=len(plan.disks)):
            exports = await self._open_exports(plan)
        self._copying_since = time.monotonic()
        assert self._stream is not None
        log.info("job %s: %d exports are open for site %s", job.job_id, len(exports), job.site_name)
        await self._stream.say(agent.RunBackupRequest(exports=agent.OpenExports(exports=exports)))

    async def _learn(self, plan: agent.BackupPlan) -> None:
        """Keeps who the vCenter is, and that dead snapshots of this VM are gone; begins the point."""
        job = self._live.job
        self._writer = await PointWriter.begin(
            self._repository, plan.vcenter_uuid, plan.vm_instance_uuid, self.point_id
        )
        row = point_service_pb2.RestorePoint(
            point_id=self.point_id,
            job_id=job.job_id,
            vcenter_name=job.vcenter_name,
            vcenter_uuid=plan.vcenter_uuid,
            vm_name=plan.vm_name,
            vm_instance_uuid=plan.vm_instance_uuid,
            repository_name=job.repository_name,
            directory=self._writer.directory,
            quiesce_result=plan.quiesce_result,
        )

        def write(connection: sa.Connection) -> None:
            vcenters.set_identity(connection, job.vcenter_name, plan.vcenter_uuid)
            points.begin(connection, row)
            cleanups.done(connection, self._swept)

        await self._workshop.catalog.run(write)

    async def _open_exports(self, plan: agent.BackupPlan) -> list[agent.DiskExport]:
        job, writer = self._live.job, self._writer
        assert writer is not None
        exports = []
        for disk in plan.disks:
            parent = self._parent(disk)
            layer = await writer.create_layer(disk.key, disk.capacity_bytes, parent)
            self._layers[disk.key] = layer
            name = job_rules.export_name(job.job_id, job.attempt, disk.key)
            socket = self._workshop.exports_dir / f"{name}.sock"
            await writer.open_export(layer, name, socket, _CONNECTIONS)
            self._export_names.append(name)
            self._workshop.exports.open(name, job.site_name, socket)
            exports.append(
                agent.DiskExport(
                    disk_key=disk.key,
                    export_name=name,
                    capacity_bytes=disk.capacity_bytes,
                    write_zeroes=parent is not None,
                )
            )
        return exports

    def _parent(self, disk: agent.PlannedDisk) -> LayerRef | None:
        if disk.mode != agent.DISK_MODE_INCREMENTAL:
            return None
        point, before = self._previous[disk.key]
        return LayerRef(point.directory, disk.key, before.layer_file, before.capacity_bytes)

    async def _take_checkpoint(self, checkpoint: agent.Checkpoint) -> None:
        if self._writer is None or checkpoint.disk_key not in self._layers:
            raise SendenseError(
                Reason.REASON_INTERNAL,
                f"the agent sent a checkpoint of disk {checkpoint.disk_key}, not planned",
            )
        await self._writer.append(
            checkpoint.disk_key,
            [Record(each.offset_bytes, each.length_bytes, each.sha256) for each in checkpoint.records],
        )

    def _copying_s(self) -> float:
        return time.monotonic() - self._copying_since

    async def _commit(self) -> None:
        """All disks are copied and the snapshot was there to the end: the point becomes complete."""
        live = self._live
        if self.committed:
            return
        if live.stop_requested.is_set():
            assert live.stop_cause is not None
            raise live.stop_cause
        if self._plan is None or self._writer is None:
            raise SendenseError(Reason.REASON_INTERNAL, "the agent said that all is copied before its plan")
        unfinished = [
            disk.key
            for disk in live.job.disks
            if disk.state not in {pb.DISK_STATE_COPIED, pb.DISK_STATE_SKIPPED}
        ]
        if unfinished:
            raise SendenseError(
                Reason.REASON_INTERNAL, f"the agent said that all is copied, but disks {unfinished} are not"
            )
        self._committing = True
        await live.change(job_changes.enter(pb.JOB_PHASE_COMMIT))
        with telemetry.span("commit", point=self.point_id):
            self._close_exports()
            parents = {
                disk.key: self._previous[disk.key][0].point_id
                for disk in self._plan.disks
                if disk.mode == agent.DISK_MODE_INCREMENTAL
            }
            document = await self._writer.commit(
                point_record.document(
                    live.job,
                    self._plan,
                    point_id=self.point_id,
                    hub_id=self._workshop.catalog.hub_id,
                    snapshot_time_us=self._snapshot_time_us,
                    layers=self._layers,
                    parents=parents,
                )
            )
            self.committed = True
            row = await asyncio.to_thread(
                point_record.message,
                document,
                self._repository.name,
                self._writer.directory,
                self._repository.point_path(self._writer.directory),
            )
            await self._workshop.catalog.run(lambda connection: points.complete(connection, row))
        await live.change(_has_point(self.point_id))
        assert self._stream is not None
        await self._stream.say(agent.RunBackupRequest(committed=agent.CommitPoint(point_id=self.point_id)))

    # --- the way back ---

    def _close_exports(self) -> None:
        for name in self._export_names:
            self._workshop.exports.close(name)

    def _explained(self, error: SendenseError) -> SendenseError:
        """A failed write, with what qemu-nbd said about it."""
        if error.reason != Reason.REASON_TARGET_WRITE_FAILED or self._writer is None:
            return error
        words = [export.stderr_tail for export in self._writer.exports if export.stderr_tail]
        if words:
            error.metadata["qemu_nbd"] = "\n".join(words)
        if self._repository.space().free_bytes < _FULL_BELOW_BYTES:
            return SendenseError(
                Reason.REASON_REPOSITORY_FULL,
                f"the repository {self._repository.name} is full: {error.message}",
                remedy="Make room in the repository; nothing of this backup was kept.",
                repository=self._repository.name,
            )
        return error

    async def _dismiss(self, cause: SendenseError) -> None:
        """Has the agent end the job; what it left is known afterwards, if it answers."""
        assert self._stream is not None
        try:
            async with asyncio.timeout(_DISMISS_WITHIN_S):
                await self._stream.say(agent.RunBackupRequest(cancel=agent.CancelBackup(cause=cause.message)))
                async with contextlib.aclosing(self._stream.events()) as events:
                    async for event in events:
                        if event.WhichOneof("event") == "failed":
                            self.snapshot_maybe_left = event.failed.snapshot_left
        except (SendenseError, TimeoutError) as error:
            log.warning("job %s: the agent did not end it: %s", self._live.job.job_id, error)

    async def clean_up(self) -> None:
        """Removes what is not part of a complete point. May be repeated."""
        self._close_exports()
        if self._writer is not None:
            await self._writer.discard()
        if not self.committed:
            await self._workshop.catalog.run(lambda connection: points.forget(connection, self.point_id))


def _has_point(point_id: str) -> Change:
    def change(job: pb.Job) -> None:
        job.point_id = point_id
        job.phase = pb.JOB_PHASE_REMOVE_SNAPSHOT

    return change
