# SPDX-License-Identifier: Apache-2.0
"""The restore point that one attempt writes: its row, layers and exports, the commit, and the way back.

Until the commit mark is set, `discard` leaves nothing of it. From then on it is complete whatever happens,
and `record` tells the catalog, as often as it takes.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path

import sqlalchemy as sa

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, points, vcenters
from sendense_hub.domain import job_rules
from sendense_hub.jobs import point_record
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.previous_points import Previous
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import LayerRef, PointDocument, PointWriter, Record, Repository

log = logging.getLogger(__name__)

_CONNECTIONS = 2


class NewPoint:
    """One point of one attempt."""

    def __init__(self, workshop: Workshop, live: LiveJob) -> None:
        self._workshop = workshop
        self._live = live
        self._repository: Repository = workshop.repository(live.job.repository_name)
        self._directory = ""
        self._writer: PointWriter | None = None
        self._layers: dict[int, LayerRef] = {}
        self._parents: dict[int, str] = {}
        self._export_names: list[str] = []
        self._document: PointDocument | None = None
        self._recorded = False
        self.point_id = str(uuid.uuid4())

    @property
    def committed(self) -> bool:
        """Whether its commit mark is set."""
        return self._document is not None

    async def open(
        self, plan: agent.BackupPlan, previous: Previous, swept: list[str]
    ) -> list[agent.DiskExport]:
        """Makes directory, layers and exports.

        Args:
            plan: of the agent, checked.
            previous: what incrementals are built on.
            swept: jobs whose dead snapshots the agent has removed, which is now known.

        Returns:
            Where the agent writes.
        """
        self._parents = {
            disk.key: previous[disk.key][0].point_id
            for disk in plan.disks
            if disk.mode != agent.DISK_MODE_FULL
        }
        await self._begin(plan, swept)
        with telemetry.span("create layers", disks=len(plan.disks)):
            return [await self._open_disk(disk, previous) for disk in plan.disks]

    async def append(self, checkpoint: agent.Checkpoint) -> None:
        """What was written to a disk and flushed."""
        if self._writer is None or checkpoint.disk_key not in self._layers:
            raise SendenseError(
                Reason.REASON_INTERNAL,
                f"the agent sent a checkpoint of disk {checkpoint.disk_key}, which has no export",
                disk=checkpoint.disk_key,
            )
        await self._writer.append(
            checkpoint.disk_key,
            [Record(each.offset_bytes, each.length_bytes, each.sha256) for each in checkpoint.records],
        )

    async def commit(self, plan: agent.BackupPlan, snapshot_time_us: int) -> None:
        """Sets the commit mark when all is durable, then tells the catalog."""
        assert self._writer is not None
        with telemetry.span("commit", point=self.point_id):
            self._close_exports()
            self._document = await self._writer.commit(
                point_record.document(
                    self._live.job,
                    plan,
                    point_id=self.point_id,
                    hub_id=self._workshop.catalog.hub_id,
                    snapshot_time_us=snapshot_time_us,
                    layers=self._layers,
                    parents=self._parents,
                )
            )
            await self.record()

    async def record(self) -> None:
        """Tells the catalog that it is complete; twice is once. May be tried again when it failed."""
        if self._recorded or self._document is None:
            return
        row = await asyncio.to_thread(
            point_record.message,
            self._document,
            self._repository.name,
            self._directory,
            self._repository.point_path(self._directory),
        )
        await self._workshop.catalog.run(lambda connection: points.complete(connection, row))
        self._recorded = True

    def words(self) -> str:
        """What the programs that serve its layers have said, if anything."""
        exports = self._writer.exports if self._writer is not None else ()
        return "\n".join(export.stderr_tail for export in exports if export.stderr_tail)

    async def discard(self) -> None:
        """Ends the exports, and leaves nothing of a point that is not complete. Twice is once.

        Raises:
            SendenseError: files or the row are left; the next start of the hub removes them.
        """
        self._close_exports()
        if self._writer is not None:
            await self._writer.discard()
        if not self.committed:
            await self._workshop.catalog.run(lambda connection: points.forget(connection, self.point_id))

    async def _begin(self, plan: agent.BackupPlan, swept: list[str]) -> None:
        """The row first: whatever is made on disk from here on, a restarted hub knows of it."""
        job = self._live.job
        self._directory = self._repository.directory_of(
            plan.vcenter_uuid, plan.vm_instance_uuid, self.point_id
        )
        row = point_service_pb2.RestorePoint(
            point_id=self.point_id,
            job_id=job.job_id,
            vcenter_name=job.vcenter_name,
            vcenter_uuid=plan.vcenter_uuid,
            vm_name=plan.vm_name,
            vm_instance_uuid=plan.vm_instance_uuid,
            repository_name=job.repository_name,
            directory=self._directory,
            quiesce_result=plan.quiesce_result,
            # What it is built on must not go, also while the catalog does not know yet that it is complete.
            disks=[
                point_service_pb2.PointDisk(
                    key=disk.key,
                    label=disk.label,
                    capacity_bytes=disk.capacity_bytes,
                    parent_point_id=self._parents.get(disk.key, ""),
                )
                for disk in plan.disks
            ],
        )

        def write(connection: sa.Connection) -> None:
            vcenters.set_identity(connection, job.vcenter_name, plan.vcenter_uuid)
            points.begin(connection, row)
            cleanups.done(connection, swept)

        await self._workshop.catalog.run(write)
        self._writer = await PointWriter.begin(
            self._repository, plan.vcenter_uuid, plan.vm_instance_uuid, self.point_id
        )

    async def _open_disk(self, disk: agent.PlannedDisk, previous: Previous) -> agent.DiskExport:
        job, writer = self._live.job, self._writer
        assert writer is not None
        parent: LayerRef | None = None
        if disk.mode != agent.DISK_MODE_FULL:
            point, before = previous[disk.key]
            parent = LayerRef(point.directory, disk.key, before.layer_file, before.capacity_bytes)
        layer = await writer.create_layer(disk.key, disk.capacity_bytes, parent)
        name = job_rules.export_name(job.job_id, job.attempt, disk.key)
        digests_name = ""
        if disk.mode == agent.DISK_MODE_COMPARED:
            assert parent is not None
            digests_name = job_rules.digests_name(name)
            with telemetry.span("write digests", disk=disk.key):
                await writer.open_digests(parent, digests_name, self._socket(digests_name))
            self._allow(digests_name)
        await writer.open_export(layer, name, self._socket(name), _CONNECTIONS)
        self._layers[disk.key] = layer
        self._allow(name)
        return agent.DiskExport(
            disk_key=disk.key,
            export_name=name,
            capacity_bytes=disk.capacity_bytes,
            write_zeroes=parent is not None,
            digests_export_name=digests_name,
        )

    def _socket(self, export_name: str) -> Path:
        return self._workshop.exports_dir / f"{export_name}.sock"

    def _allow(self, export_name: str) -> None:
        """The site may open it from now on."""
        self._export_names.append(export_name)
        self._workshop.exports.open(export_name, self._live.job.site_name, self._socket(export_name))

    def _close_exports(self) -> None:
        for name in self._export_names:
            self._workshop.exports.close(name)
