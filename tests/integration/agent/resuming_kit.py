# SPDX-License-Identifier: Apache-2.0
"""A hub's memory of one job whose attempts are interrupted: layers, eras, and what their ledgers have."""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from tests.integration.agent.site_kit import Backup, Site
from tests.integration.datapath.kit import as_raw, new_layer, qemu_nbd

from sendense.agent.v1 import backup_pb2 as pb
from sendense_lab.client import LabMachine


@dataclass
class DiskLayer:
    """One disk's."""

    file: Path
    planned: pb.PlannedDisk
    eras: list[pb.LayerEra] = field(default_factory=list)
    records: list[tuple[int, pb.LedgerRecord]] = field(default_factory=list)
    """(era, record), those in force."""

    def add(self, record: pb.LedgerRecord) -> None:
        """A later record replaces the ones it overlaps, here as a whole also when they are zeroes."""
        end = record.offset_bytes + record.length_bytes
        self.records = [
            (era, each)
            for era, each in self.records
            if each.offset_bytes >= end or each.offset_bytes + each.length_bytes <= record.offset_bytes
        ]
        self.records.append((len(self.eras) - 1, record))

    def written(self, era: int) -> list[tuple[int, int]]:
        found = [each for number, each in self.records if number == era]
        return sorted((each.offset_bytes, each.length_bytes) for each in found)


class Job:
    """The hub of one job."""

    def __init__(self, site: Site, vm: LabMachine, **start: Any) -> None:
        self.site = site
        self.vm = vm
        self.attempt = 0
        self.plan: pb.BackupPlan | None = None
        self.disks: dict[int, DiskLayer] = {}
        self.to_read: list[dict[int, int]] = []
        """Of each attempt that was given exports, by disk."""
        self._start = start
        self._job_id = ""

    async def begin(self, **changes: Any) -> Backup:
        """The next attempt."""
        self.attempt += 1
        given = {**self._start, **changes, "attempt": self.attempt}
        if self._job_id:
            given["job_id"] = self._job_id
        if self.plan is not None:
            given.setdefault("resume", self.resume())
        backup = await self.site.begin(self.vm, **given)
        self._job_id = backup.start.job_id
        return backup

    def resume(self) -> pb.ResumeFrom:
        assert self.plan is not None
        return pb.ResumeFrom(
            snapshot_moref=self.plan.snapshot_moref,
            disks=[
                pb.ResumableDisk(
                    key=key,
                    disk_object_id=layer.planned.disk_object_id,
                    backing_uuid=layer.planned.backing_uuid,
                    capacity_bytes=layer.planned.capacity_bytes,
                    mode=layer.planned.mode,
                    mode_reason=layer.planned.mode_reason,
                    eras=layer.eras,
                )
                for key, layer in self.disks.items()
            ],
        )

    @contextlib.asynccontextmanager
    async def exports(
        self, backup: Backup, plan: pb.BackupPlan, parents: dict[int, Path]
    ) -> AsyncIterator[None]:
        """Layers that go on or are begun, and what is written in them; the agent is told."""
        self.plan = plan
        async with contextlib.AsyncExitStack() as stack:
            exports = []
            for disk in plan.disks:
                parent = parents.get(disk.key) if disk.mode != pb.DISK_MODE_FULL else None
                if disk.keeps_layer:
                    layer = self.disks[disk.key]
                    layer.planned = disk
                else:
                    file = self.site.directory / f"{uuid.uuid4().hex[:8]}.qcow2"
                    await new_layer(file, disk.capacity_bytes, parent.name if parent else "")
                    layer = self.disks[disk.key] = DiskLayer(file, disk)
                for number in range(len(layer.eras)):
                    extents = list(chain.from_iterable(layer.written(number)))
                    for half in (extents[: len(extents) // 4 * 2], extents[len(extents) // 4 * 2 :]):
                        written = pb.WrittenExtents(disk_key=disk.key, era=number, extents_bytes=half)
                        await backup.stream.tell(written=written)
                era = pb.LayerEra(snapshot_moref=plan.snapshot_moref, change_id=disk.change_id)
                if not layer.eras or layer.eras[-1] != era:
                    layer.eras.append(era)
                name = f"e-{disk.key}-{self.attempt}"
                await stack.enter_async_context(qemu_nbd(self.site.hub, name, layer.file))
                exports.append(
                    pb.DiskExport(
                        disk_key=disk.key,
                        export_name=name,
                        capacity_bytes=disk.capacity_bytes,
                        write_zeroes=disk.keeps_layer or parent is not None,
                    )
                )
            await backup.stream.tell(exports=pb.OpenExports(exports=exports))
            yield

    def take(self, backup: Backup, first: int = 0) -> None:
        """Stores the checkpoints that were heard, and what was to be read."""
        for event in backup.heard[first:]:
            for record in event.checkpoint.records:
                self.disks[event.checkpoint.disk_key].add(record)
        progress = [event.progress for event in backup.heard if event.HasField("progress")]
        self.to_read.append({disk.disk_key: disk.to_read_bytes for disk in progress[0].disks})
        assert all(
            disk.to_read_bytes == self.to_read[-1][disk.disk_key] for each in progress for disk in each.disks
        )

    async def to_the_end(self, backup: Backup, parents: dict[int, Path] | None = None) -> pb.BackupPlan:
        """All that a hub does in an attempt that is not interrupted."""
        plan = await backup.until_plan()
        async with self.exports(backup, plan, parents or {}):
            await backup.until(lambda event: event.HasField("copied"))
        await backup.stream.tell(committed=pb.CommitPoint(point_id="p"))
        await backup.rest()
        self.take(backup)
        return plan

    async def check(self, content: dict[int, bytes], parents: dict[int, bytes] | None = None) -> None:
        """The layers hold this, and the ledgers know all of it."""
        for key, layer in self.disks.items():
            assert await as_raw(layer.file) == content[key]
            known = bytearray((parents or {}).get(key, bytes(len(content[key]))))
            for _, record in layer.records:
                where = slice(record.offset_bytes, record.offset_bytes + record.length_bytes)
                known[where] = content[key][where]
                if record.sha256:
                    assert hashlib.sha256(content[key][where]).digest() == record.sha256
                else:
                    assert not any(content[key][where])
            assert bytes(known) == content[key]
