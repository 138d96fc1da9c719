# SPDX-License-Identifier: Apache-2.0
"""Copying the disks of one snapshot: a source and a mover for each, what they say put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.permits_pb2 import PERMIT_KIND_HOST_READ
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath import CopyOrder, Mover, MoverEvent, start_mover
from sendense_agent.datapath.mover.comparing import data_ranges
from sendense_agent.domain.remainder import Remainder
from sendense_agent.domain.resuming import another_try_may_help
from sendense_agent.vsphere import Place, Session, Snapshot
from sendense_agent.worker.permits import Permits
from sendense_agent.worker.plan import DiskPlan
from sendense_agent.worker.reading import disk_source
from sendense_agent.worker.site import Site
from sendense_agent.worker.written import WrittenBook
from sendense_common import telemetry
from sendense_common.errors import SendenseError, invalid
from sendense_common.paths import private_dir

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 0.25
# What is in flight has to arrive, be flushed, and be confirmed; the agent gives a worker 20 s to end.
_CHECKPOINT_WITHIN_S = 10.0
_EXPORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

Say = Callable[[pb.RunBackupResponse], Awaitable[None]]


class Copying:
    """The copy of one backup; runs once."""

    def __init__(self, site: Site, job_id: str, vm_name: str, say: Say, permits: Permits) -> None:
        """Nothing runs yet.

        Args:
            site: of the agent.
            job_id: for names of files.
            vm_name: for messages.
            say: takes progress, checkpoints and finished disks.
            permits: asked before a disk is read.
        """
        self._site = site
        self._job_id = job_id
        self._vm_name = vm_name
        self._say = say
        self._permits = permits
        self.host: Place | None = None
        """Whose limit of disks that are read at once counts."""
        self.audit: Mapping[int, bytearray] = {}
        """By device key: what else is read and compared; see AuditSample."""
        self._movers: dict[int, Mover] = {}
        self._bytes_per_second = 0
        self._left: dict[int, Remainder] = {}
        self._progress: dict[int, pb.DiskProgress] = {}
        self._untold: dict[int, list[pb.AuditMismatch]] = defaultdict(list)
        self._told_at = 0.0

    async def limit(self, bytes_per_second: int) -> None:
        """Reads no faster over all disks, also those that start later; 0 is no limit."""
        self._bytes_per_second = max(0, bytes_per_second)
        await self._share()

    async def checkpoint(self) -> None:
        """Has the movers stop, each with a last checkpoint. `run` is to be cancelled next."""
        movers = list(self._movers.values())
        for mover in movers:
            await mover.stop()
        if movers:
            gone = [asyncio.create_task(mover.gone.wait()) for mover in movers]
            _, late = await asyncio.wait(gone, timeout=_CHECKPOINT_WITHIN_S)
            for task in late:
                task.cancel()

    async def run(
        self,
        session: Session,
        snapshot: Snapshot,
        plans: list[DiskPlan],
        exports: pb.OpenExports,
        written: WrittenBook,
    ) -> None:
        """Copies all disks at once; the first failure ends the others. Nothing runs any more afterwards.

        Raises:
            SendenseError: INVALID_REQUEST, DISK_MISMATCH, SNAPSHOT_LOST, and those of sources and movers.
        """
        by_key = _matched(plans, exports)
        for plan in plans:
            sampled = data_ranges(bytes(self.audit.get(plan.disk.key, b"")))
            self._left[plan.disk.key] = plan.left(written.of(plan.disk.key), sampled)
        self._progress = {
            key: pb.DiskProgress(disk_key=key, to_read_bytes=left.read.total_bytes)
            for key, left in self._left.items()
        }
        await self._tell_progress()
        copies = [
            asyncio.create_task(self._copy(session, snapshot, plan, by_key[plan.disk.key])) for plan in plans
        ]
        failed: set[asyncio.Task[None]] = set()
        try:
            failed, _ = await asyncio.wait(copies, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # Once: a second cancel would tear a copy out of its own clean-up.
            for task in copies:
                task.cancel()
            await asyncio.wait(copies)
        for task in failed:
            task.result()

    async def _copy(
        self, session: Session, snapshot: Snapshot, plan: DiskPlan, export: pb.DiskExport
    ) -> None:
        disk, paths, left = plan.disk, self._site.paths, self._left[plan.disk.key]
        compared = plan.mode == pb.DISK_MODE_COMPARED
        async with (
            self._permits.held(PERMIT_KIND_HOST_READ, [self.host] if self.host else []),
            (await disk_source(self._site.config, session, snapshot, disk)).open(
                capacity_bytes=disk.capacity_bytes,
                run_dir=paths.run / "n",
                label=f"{self._job_id[:8]}-{disk.key}",
            ) as source,
            start_mover(
                CopyOrder(
                    disk_key=disk.key,
                    label=f"{disk.label} of VM {self._vm_name}",
                    capacity_bytes=disk.capacity_bytes,
                    read=plan.read if compared else left.read,
                    zero=left.zero,
                    kept=left.kept,
                    audit=bytes(self.audit.get(disk.key, b"")),
                    source=source,
                    tunnel=self._site.config.tunnel(paths),
                    export_name=export.export_name,
                    local_socket=private_dir(paths.exports_dir) / f"{export.export_name}.sock",
                    write_zeroes=export.write_zeroes,
                    digests_export_name=export.digests_export_name,
                    checkpoint_bytes=self._site.config.checkpoints.bytes,
                    checkpoint_s=self._site.config.checkpoints.seconds,
                    traceparent=telemetry.traceparent(),
                    attempt=telemetry.attempt(),
                    telemetry_socket=paths.telemetry_socket,
                )
            ) as mover,
            contextlib.aclosing(mover.events()) as events,
        ):
            self._movers[disk.key] = mover
            await self._share()
            try:
                async for event in events:
                    await self._take(event, snapshot)
            finally:
                del self._movers[disk.key]
                mover.gone.set()
            if not mover.finished:  # it was stopped, and so will all this be
                await asyncio.Event().wait()
        await self._share()

    async def _take(self, event: MoverEvent, snapshot: Snapshot) -> None:
        match event:
            case pb.DiskProgress():
                self._keep(event)
                if time.monotonic() - self._told_at >= _PROGRESS_EVERY_S:
                    await self._tell_progress()
            case pb.Checkpoint():
                # The disk's files are frozen only while the snapshot exists: without it, what was read last
                # may be anything.
                await confirm(snapshot, self._vm_name)
                await self.tell_mismatches(event.disk_key)  # first: what they wrote may be in this one
                await self._say(pb.RunBackupResponse(checkpoint=event))
            case pb.AuditMismatch():
                confirmed = await self._confirmed(snapshot)
                self._untold[event.disk_key].append(event)
                if confirmed:
                    await self.tell_mismatches(event.disk_key)
            case pb.DiskDone():
                self._keep(event.progress)
                await self._say(pb.RunBackupResponse(disk_done=event))

    async def _confirmed(self, snapshot: Snapshot) -> bool:
        """Whether it is known to be there; without it, what was read is no witness against anybody.

        When nobody can tell now, a mismatch waits: what it wrote will be in a checkpoint, which is confirmed
        as well. When that fails too, the next attempt finds it again, for it is given the same sample.
        """
        try:
            await confirm(snapshot, self._vm_name)
        except SendenseError as error:
            if error.reason == Reason.REASON_SNAPSHOT_LOST or not another_try_may_help(error.reason):
                raise
            log.warning("a mismatch is told later: %s", error)
            return False
        return True

    async def tell_mismatches(self, disk_key: int) -> None:
        """Those that had to wait, now that the snapshot is known to be there."""
        while held := self._untold[disk_key]:
            await self._say(pb.RunBackupResponse(audit_mismatch=held.pop(0)))

    def _keep(self, progress: pb.DiskProgress) -> None:
        progress.to_read_bytes = self._progress[progress.disk_key].to_read_bytes
        self._progress[progress.disk_key] = progress

    async def _tell_progress(self) -> None:
        self._told_at = time.monotonic()
        await self._say(pb.RunBackupResponse(progress=pb.BackupProgress(disks=self._progress.values())))

    async def _share(self) -> None:
        """Gives each mover its part of the rate."""
        movers = list(self._movers.values())
        for mover in movers:  # while one is told, others may come and go, and then it is shared out anew
            await mover.limit(max(1, self._bytes_per_second // len(movers)) if self._bytes_per_second else 0)


async def confirm(snapshot: Snapshot, vm_name: str) -> None:
    """Raises SNAPSHOT_LOST unless the snapshot is still there."""
    if not await snapshot.exists():
        raise SendenseError(
            Reason.REASON_SNAPSHOT_LOST,
            f"somebody removed the snapshot of VM {vm_name} while it was read",
            remedy="What was copied is not consistent and was discarded. Start the backup again.",
            vm=vm_name,
        )


def _matched(plans: list[DiskPlan], exports: pb.OpenExports) -> dict[int, pb.DiskExport]:
    """The export of each disk, by its key; they belong together by key and by size."""
    for export in exports.exports:
        if not _EXPORT_NAME.fullmatch(export.export_name):  # names a socket of this site
            raise invalid("exports.export_name", f"{export.export_name!r} is not a name")
        if export.digests_export_name and not _EXPORT_NAME.fullmatch(export.digests_export_name):
            raise invalid("exports.digests_export_name", f"{export.digests_export_name!r} is not a name")
    by_key = {export.disk_key: export for export in exports.exports}
    if set(by_key) != {plan.disk.key for plan in plans} or len(by_key) != len(exports.exports):
        raise invalid("exports", "are not those of the planned disks")
    for plan in plans:
        disk, export = plan.disk, by_key[plan.disk.key]
        if export.capacity_bytes != disk.capacity_bytes:
            raise SendenseError(
                Reason.REASON_DISK_MISMATCH,
                f"the hub's export for {disk.label} has {export.capacity_bytes} bytes, "
                f"the disk has {disk.capacity_bytes}",
                disk=disk.key,
            )
        if (plan.mode == pb.DISK_MODE_COMPARED) != bool(export.digests_export_name):
            raise invalid("exports.digests_export_name", f"does not fit how {disk.label} is copied")
    return by_key
