# SPDX-License-Identifier: Apache-2.0
"""The restore point that the attempts of a job write: its row, layers and exports, the commit, the way back.

Until the commit mark is set, `suspend` leaves it to the next attempt, and `discard` leaves nothing of it.
From then on it is complete whatever happens, and `record` tells the catalog, as often as it takes.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import uuid
from itertools import chain, pairwise
from pathlib import Path

import sqlalchemy as sa

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, job_plans, points, vcenters
from sendense_hub.catalog.job_plans import Era, JobPlan
from sendense_hub.domain import job_rules
from sendense_hub.jobs import point_record
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.previous_points import Previous
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import (
    LayerRef,
    Owner,
    PointDocument,
    PointWriter,
    Record,
    Repository,
    delete_point,
)

log = logging.getLogger(__name__)

_CONNECTIONS = 2
# Of 16 bytes: far below what a message may have.
_RANGES_PER_MESSAGE = 50_000
# A child's end is heard of within a second.
_LOOKS, _LOOK_AGAIN_S = 10, 0.1


class NewPoint:
    """The point of a job, in the hands of one attempt."""

    def __init__(
        self,
        workshop: Workshop,
        live: LiveJob,
        earlier: point_service_pb2.RestorePoint | None,
        kept: JobPlan | None,
    ) -> None:
        """Nothing happens yet.

        Args:
            workshop: of the hub.
            live: the job.
            earlier: the point that earlier attempts have begun.
            kept: what they left to go on with.
        """
        self._workshop = workshop
        self._live = live
        self.repository: Repository = workshop.repository(live.job.repository_name)
        """Where it is."""
        self._directory = earlier.directory if earlier is not None else ""
        self._eras: dict[int, list[Era]] = {}
        self._writer: PointWriter | None = None
        self._layers: dict[int, LayerRef] = {}
        self._parents: dict[int, str] = {}
        self._export_names: list[str] = []
        self._document: PointDocument | None = None
        self._recorded = False
        self.kept = kept
        """What there is to go on with: a plan, and layers."""
        self.stored_bytes: collections.Counter[int] = collections.Counter()
        """By device key: data that checkpoints of this attempt cover."""
        self.kept_bytes: dict[int, int] = {}
        """By device key: data of earlier attempts that need not be copied again."""
        self.point_id = earlier.point_id if earlier is not None else str(uuid.uuid4())

    @property
    def committed(self) -> bool:
        """Whether its commit mark is set."""
        return self._document is not None

    async def adopt(self) -> bool:
        """Whether a hub that ended just then has set the commit mark; the catalog knows it now.

        Raises:
            SendenseError: POINT_CORRUPT when it has the mark and is not whole; nothing of it is touched then.
        """
        if not self._directory:
            return False
        try:
            self._document = await asyncio.to_thread(self.repository.settled_document, self._directory)
        except SendenseError as error:
            if error.reason != Reason.REASON_POINT_INCOMPLETE:
                raise
            return False
        await self.record()
        return True

    async def open(
        self, plan: agent.BackupPlan, snapshot_time_us: int, previous: Previous, swept: list[str]
    ) -> tuple[list[agent.WrittenExtents], list[agent.DiskExport]]:
        """Makes directory, layers and exports, or goes on with those of earlier attempts.

        Args:
            plan: of the agent, checked.
            snapshot_time_us: of its snapshot.
            previous: what incrementals are built on.
            swept: jobs whose dead snapshots the agent has removed, which is now known.

        Returns:
            What is written already, and where the agent writes.
        """
        self._parents = {
            disk.key: previous[disk.key][0].point_id
            for disk in plan.disks
            if disk.mode != agent.DISK_MODE_FULL
        }
        await self._begin(plan, swept)
        with telemetry.span("create layers", disks=len(plan.disks)):
            written = [part for disk in plan.disks for part in await self._open_layer(plan, disk, previous)]
            gone = set(self.kept.eras if self.kept else ()) - set(self._layers)
            for key in gone:  # a disk that the VM does not have any more
                await self._writer_of_point().drop_layer(key)
            # Before anything is written: which snapshot what comes now is from.
            kept = self.kept = JobPlan(plan, snapshot_time_us, self._eras)
            await self._workshop.catalog.run(
                lambda connection: job_plans.keep(connection, self._live.job.job_id, kept)
            )
            return written, [await self._open_export(disk, previous) for disk in plan.disks]

    async def append(self, checkpoint: agent.Checkpoint) -> None:
        """What was written to a disk and flushed."""
        if self._writer is None or checkpoint.disk_key not in self._layers:
            raise SendenseError(
                Reason.REASON_INTERNAL,
                f"the agent sent a checkpoint of disk {checkpoint.disk_key}, which has no export",
                disk=checkpoint.disk_key,
            )
        records = [Record(each.offset_bytes, each.length_bytes, each.sha256) for each in checkpoint.records]
        await self._writer.append(checkpoint.disk_key, records)
        self.stored_bytes[checkpoint.disk_key] += sum(each.length_bytes for each in records if each.sha256)

    async def commit(self, plan: agent.BackupPlan, snapshot_time_us: int) -> None:
        """Sets the commit mark when all is durable, then tells the catalog."""
        assert self._writer is not None
        with telemetry.span("commit", point=self.point_id):
            self._close_exports()
            newest_us = await self._workshop.catalog.run(
                lambda connection: points.newest_time_us(connection, plan.vcenter_uuid, plan.vm_instance_uuid)
            )
            self._document = await self._writer.commit(
                point_record.document(
                    self._live.job,
                    plan,
                    point_id=self.point_id,
                    hub_id=self._workshop.catalog.hub_id,
                    snapshot_time_us=snapshot_time_us,
                    layers=self._layers,
                    parents=self._parents,
                    newest_us=newest_us,
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
            self.repository.name,
            self._directory,
            self.repository.point_path(self._directory),
        )
        await self._workshop.catalog.run(lambda connection: points.complete(connection, row))
        self._recorded = True

    def words(self) -> str:
        """What the programs that serve its layers have said, if anything."""
        exports = self._writer.exports if self._writer is not None else ()
        return "\n".join(export.stderr_tail for export in exports if export.stderr_tail)

    async def exports_ended(self) -> list[str]:
        """Names of exports whose qemu-nbd ended by itself; the site may hear of it before us."""
        exports = self._writer.exports if self._writer is not None else ()
        for _ in range(_LOOKS):
            if ended := [export.name for export in exports if export.exited]:
                return ended
            await asyncio.sleep(_LOOK_AGAIN_S)
        return []

    async def suspend(self) -> None:
        """Ends the exports; what was written stays for the next attempt. Twice is once."""
        self._close_exports()
        if self._writer is not None:
            await self._writer.suspend()

    async def discard(self) -> None:
        """Ends the exports, and leaves nothing of a point that is not complete. Twice is once.

        One that has its commit mark of an earlier attempt stays.

        Raises:
            SendenseError: files or the row are left; reconciliation settles them.
        """
        self._close_exports()
        if self._writer is not None:
            await self._writer.discard()
        elif self._directory and not self.committed:
            # Not mounted, it would look as if there were nothing.
            await asyncio.to_thread(self.repository.space)
            if not await self.adopt():
                await delete_point(self.repository, self._directory)
        if not self.committed:
            await self._workshop.catalog.run(lambda connection: points.forget(connection, self.point_id))

    async def _begin(self, plan: agent.BackupPlan, swept: list[str]) -> None:
        """The row first: whatever is made on disk from here on, a restarted hub knows of it."""
        job = self._live.job
        self._directory = self.repository.directory_of(
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
            self.repository,
            plan.vcenter_uuid,
            plan.vm_instance_uuid,
            self.point_id,
            Owner(self._workshop.catalog.hub_id, job.job_id),
        )

    def _writer_of_point(self) -> PointWriter:
        assert self._writer is not None
        return self._writer

    async def _open_layer(
        self, plan: agent.BackupPlan, disk: agent.PlannedDisk, previous: Previous
    ) -> list[agent.WrittenExtents]:
        """Makes a disk's layer, or goes on with it; what is written already."""
        writer, parent = self._writer_of_point(), _parent(disk, previous)
        eras = self.kept.eras.get(disk.key, []) if self.kept else []
        layer: LayerRef | None = None
        if disk.keeps_layer and eras:
            layer = await writer.go_on_with_layer(disk.key, disk.capacity_bytes, parent)
        if layer is None:
            self.kept_bytes[disk.key] = 0
            self._layers[disk.key] = await writer.create_layer(disk.key, disk.capacity_bytes, parent)
            self._eras[disk.key] = [Era(plan.snapshot_moref, disk.change_id, 0)]
            return []
        end_byte = writer.ledger_bytes(disk.key)
        self._layers[disk.key] = layer
        self._eras[disk.key] = eras
        if eras[-1].snapshot_moref != plan.snapshot_moref:
            self._eras[disk.key] = [*eras, Era(plan.snapshot_moref, disk.change_id, end_byte)]
        written = []
        self.kept_bytes[disk.key] = await writer.data_bytes(disk.key)
        for number, (first, last) in enumerate(pairwise([*(era.first_byte for era in eras), end_byte])):
            covered = await writer.coverage(disk.key, first, last)
            for begin in range(0, len(covered.ranges), _RANGES_PER_MESSAGE):
                part = covered.ranges[begin : begin + _RANGES_PER_MESSAGE]
                numbers = chain.from_iterable((start, end - start) for start, end in part)
                written.append(agent.WrittenExtents(disk_key=disk.key, era=number, extents_bytes=numbers))
        return written

    async def _open_export(self, disk: agent.PlannedDisk, previous: Previous) -> agent.DiskExport:
        job, writer, parent = self._live.job, self._writer_of_point(), _parent(disk, previous)
        layer = self._layers[disk.key]
        name = job_rules.export_name(job.job_id, job.attempt, disk.key)
        digests_name = ""
        if disk.mode == agent.DISK_MODE_COMPARED:
            assert parent is not None
            digests_name = job_rules.digests_name(name)
            with telemetry.span("write digests", disk=disk.key):
                await writer.open_digests(parent, digests_name, self._socket(digests_name))
            self._allow(digests_name)
        await writer.open_export(layer, name, self._socket(name), _CONNECTIONS)
        self._allow(name)
        return agent.DiskExport(
            disk_key=disk.key,
            export_name=name,
            capacity_bytes=disk.capacity_bytes,
            write_zeroes=parent is not None or writer.ledger_bytes(disk.key) > 0,
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


def _parent(disk: agent.PlannedDisk, previous: Previous) -> LayerRef | None:
    """What a disk's layer is built on; None for a full."""
    if disk.mode == agent.DISK_MODE_FULL:
        return None
    point, before = previous[disk.key]
    return LayerRef(point.directory, disk.key, before.layer_file, before.capacity_bytes)
