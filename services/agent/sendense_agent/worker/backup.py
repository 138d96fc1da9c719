# SPDX-License-Identifier: Apache-2.0
"""One backup at the site: login, snapshot, plan, copy, confirm, remove. Leaves nothing however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense_agent.datapath import CopyOrder, Mover, datastore_source, start_mover
from sendense_agent.vsphere import Machine, Session, Snapshot, find_machine
from sendense_agent.worker.channel import Channel, unpack
from sendense_agent.worker.plan import DiskPlan, plan_disk
from sendense_agent.worker.site import Site
from sendense_common import telemetry
from sendense_common.errors import SendenseError, invalid
from sendense_common.paths import private_dir

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 0.25
_LOOK_EVERY_S = 30.0
_NO_CHANGE_ID = (
    "Changed block tracking is off and could not be turned on (the VM has other snapshots, or is powered "
    "off): the next backup will be a full again."
)


class Backup:
    """Runs once, then its process ends."""

    def __init__(self, site: Site, channel: Channel, start: pb.BackupStart) -> None:
        self._site = site
        self._channel = channel
        self._start = start
        self._exports: asyncio.Future[pb.OpenExports] = asyncio.get_running_loop().create_future()
        self._committed: asyncio.Future[pb.CommitPoint] = asyncio.get_running_loop().create_future()
        self._movers: dict[int, Mover] = {}
        self._progress: dict[int, pb.DiskProgress] = {}
        self._told_at = 0.0
        self._snapshot_left = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `done` or `failed` has been said; `stopping` or a cancel ends it early."""
        cause: SendenseError | None = None
        work = asyncio.create_task(self._work())
        listening = asyncio.create_task(self._listen())
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({work, listening, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                cause = _cancelled(stop.done())
                work.cancel()
            await asyncio.wait({work})
            if work.cancelled():
                raise cause or _cancelled(stopped=True)
            work.result()
        except SendenseError as error:
            failed = pb.BackupFailed(failure=(cause or error).to_failure(), snapshot_left=self._snapshot_left)
            await self._say(pb.RunBackupResponse(failed=failed))
        finally:
            for task in (work, listening, stop):
                task.cancel()
            await asyncio.gather(work, listening, stop, return_exceptions=True)

    async def _listen(self) -> None:
        """What the hub says; returns when the backup is to be cancelled, or nobody listens any more."""
        while (wrapped := await self._channel.receive()) is not None:
            request = unpack(wrapped, pb.RunBackupRequest)
            if request is None:
                continue
            match request.WhichOneof("message"):
                case "exports":
                    if not self._exports.done():  # said again after a rejoin
                        self._exports.set_result(request.exports)
                case "committed":
                    if not self._committed.done():
                        self._committed.set_result(request.committed)
                case "limit":
                    share = request.limit.bytes_per_second // max(1, len(self._movers))
                    for mover in list(self._movers.values()):
                        await mover.limit(max(share, 1) if request.limit.bytes_per_second else 0)
                case "cancel":
                    log.info("job %s is cancelled: %s", self._start.job_id, request.cancel.cause)
                    return

    async def _work(self) -> None:
        start = self._start
        await self._phase(pb.AGENT_PHASE_LOGIN)
        async with self._site.session(start.vcenter, operation_pb2.OPERATION_BACKUP) as session:
            await self._phase(pb.AGENT_PHASE_PREFLIGHT)
            with telemetry.span("preflight"):
                machine = await find_machine(session, start.vm_instance_uuid, start.vm_name)
                await self._sweep(machine)
                machine.preflight()
                just_enabled = await machine.enable_changed_block_tracking()
                await machine.refresh()
            await self._phase(pb.AGENT_PHASE_SNAPSHOT)
            async with self._snapshot(machine) as snapshot:
                plans = await self._plan(session, machine, snapshot, just_enabled=just_enabled)
                exports = await self._exports
                await self._phase(pb.AGENT_PHASE_COPY)
                with telemetry.span("copy", disks=len(plans)):
                    await self._copy(session, snapshot, plans, exports)
                await self._phase(pb.AGENT_PHASE_CONFIRM)
                await self._confirm(snapshot)
                await self._say(pb.RunBackupResponse(copied=pb.DisksCopied()))
                await self._committed
                await self._phase(pb.AGENT_PHASE_REMOVE_SNAPSHOT)
            # From here on the point is complete: a snapshot that stays is a warning, not a failure.
        await self._say(pb.RunBackupResponse(done=pb.BackupDone(snapshot_removed=not self._snapshot_left)))

    async def _sweep(self, machine: Machine) -> None:
        """Removes what dead jobs left, before there is one snapshot more."""
        dead = {each.job_id for each in self._start.dead_snapshots}
        for snapshot in await machine.own_snapshots(self._start.hub_id, dead | {self._start.job_id}):
            log.info("removing the snapshot %s that an earlier job left", snapshot.moref)
            await snapshot.remove()
        await machine.refresh()

    @contextlib.asynccontextmanager
    async def _snapshot(self, machine: Machine) -> AsyncIterator[Snapshot]:
        """One snapshot, gone when the block ends, whatever happens in it or while it is made."""
        start = self._start
        with telemetry.span("create snapshot"):
            making = asyncio.create_task(machine.create_snapshot(start.hub_id, start.job_id, start.quiesce))
            try:
                snapshot = await asyncio.shield(making)
            except asyncio.CancelledError:
                # vSphere goes on making it, and nobody else would know of it.
                for result in await asyncio.gather(making, return_exceptions=True):
                    if isinstance(result, Snapshot):
                        await self._remove(result)
                    else:
                        self._snapshot_left = True
                raise
            except SendenseError as error:
                self._snapshot_left = error.reason in {
                    Reason.REASON_DEADLINE_EXCEEDED,
                    Reason.REASON_VCENTER_UNREACHABLE,
                    Reason.REASON_VCENTER_SESSION_LOST,
                }
                raise
        try:
            yield snapshot
        finally:
            with telemetry.span("remove snapshot"):
                await self._remove(snapshot)

    async def _remove(self, snapshot: Snapshot) -> None:
        removing = asyncio.create_task(snapshot.remove())
        try:
            await asyncio.shield(removing)
        except SendenseError as error:
            self._snapshot_left = True
            log.error("the snapshot %s was not removed: %s", snapshot.moref, error)
            await self._warn("snapshot_not_removed", error.message)
        except asyncio.CancelledError:
            await asyncio.gather(removing, return_exceptions=True)
            raise

    async def _plan(
        self, session: Session, machine: Machine, snapshot: Snapshot, *, just_enabled: bool
    ) -> list[DiskPlan]:
        await self._phase(pb.AGENT_PHASE_PLAN)
        for code, message in snapshot.warnings:
            await self._warn(code, message)
        previous = {each.key: each for each in self._start.previous_disks}
        with telemetry.span("ask for changed areas"):
            found = machine.preflight()
            frozen = {disk.key: disk for disk in snapshot.disks}
            missing = [disk.label for disk in found.eligible if disk.key not in frozen]
            if missing:
                raise SendenseError(
                    Reason.REASON_SNAPSHOT_FAILED,
                    f"the snapshot of VM {machine.name} lacks {', '.join(missing)}",
                    remedy="Somebody changed the VM's disks just now. Start the backup again.",
                    retryable=True,
                    vm=machine.name,
                )
            plans = [
                await plan_disk(
                    snapshot, frozen[disk.key], previous.get(disk.key), tracking_just_enabled=just_enabled
                )
                for disk in found.eligible
            ]
        for plan in plans:
            if not plan.disk.change_id:
                await self._warn("no_change_id", _NO_CHANGE_ID, plan.disk.key)
        await self._say(
            pb.RunBackupResponse(
                plan=pb.BackupPlan(
                    vcenter_uuid=session.vcenter_uuid,
                    vm_instance_uuid=machine.instance_uuid,
                    vm_name=machine.name,
                    snapshot_moref=snapshot.moref,
                    disks=[plan.message() for plan in plans],
                    skipped_disks=[
                        pb.SkippedDisk(
                            key=disk.key,
                            label=disk.label,
                            reason=disk.unprotectable_reason,
                            capacity_bytes=disk.capacity_bytes,
                        )
                        for disk in found.skipped
                    ],
                    quiesce_result=snapshot.quiesce_result,
                    vm_config_json=await machine.config_json(),
                    nvram=await machine.nvram(),
                )
            )
        )
        return plans

    async def _copy(
        self, session: Session, snapshot: Snapshot, plans: list[DiskPlan], exports: pb.OpenExports
    ) -> None:
        """All disks at once; the first failure ends the others."""
        by_key = {export.disk_key: export for export in exports.exports}
        if set(by_key) != {plan.disk.key for plan in plans}:
            raise invalid("exports", "are not those of the planned disks")
        looking = asyncio.create_task(self._look_after(snapshot))
        copying = [
            asyncio.create_task(self._copy_disk(session, snapshot, plan, by_key[plan.disk.key]))
            for plan in plans
        ]
        try:
            pending = {looking, *copying}
            while not all(task.done() for task in copying):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in (looking, *copying):
                task.cancel()
            await asyncio.gather(looking, *copying, return_exceptions=True)

    async def _copy_disk(
        self, session: Session, snapshot: Snapshot, plan: DiskPlan, export: pb.DiskExport
    ) -> None:
        disk, paths = plan.disk, self._site.paths
        if export.capacity_bytes != disk.capacity_bytes:
            raise SendenseError(
                Reason.REASON_DISK_MISMATCH,
                f"the hub's export for {disk.label} has {export.capacity_bytes} bytes, "
                f"the disk has {disk.capacity_bytes}",
                disk=disk.key,
            )
        async with contextlib.AsyncExitStack() as stack:
            source = await stack.enter_async_context(
                datastore_source(
                    url=await snapshot.source_url(disk),
                    cookie=session.cookie(),
                    trust_pem=session.trusted.trust_pem,
                    capacity_bytes=disk.capacity_bytes,
                    run_dir=paths.run / "n",
                    label=f"{self._start.job_id[:8]}-{disk.key}",
                )
            )
            order = CopyOrder(
                disk_key=disk.key,
                label=f"{disk.label} of VM {self._start.vm_name}",
                capacity_bytes=disk.capacity_bytes,
                read=plan.read,
                zero=plan.zero,
                source=source,
                tunnel=self._site.config.tunnel(paths),
                export_name=export.export_name,
                local_socket=private_dir(paths.exports_dir) / f"{export.export_name}.sock",
                write_zeroes=export.write_zeroes,
                traceparent=telemetry.traceparent(),
                telemetry_socket=paths.telemetry_socket,
            )
            mover = await stack.enter_async_context(start_mover(order))
            self._movers[disk.key] = mover
            try:
                async with contextlib.aclosing(mover.events()) as events:
                    async for event in events:
                        await self._take(event)
            finally:
                del self._movers[disk.key]

    async def _take(self, event: pb.DiskProgress | pb.Checkpoint | pb.DiskDone) -> None:
        match event:
            case pb.DiskProgress():
                self._progress[event.disk_key] = event
                now = time.monotonic()
                if now - self._told_at >= _PROGRESS_EVERY_S:
                    self._told_at = now
                    await self._say(
                        pb.RunBackupResponse(progress=pb.BackupProgress(disks=self._progress.values()))
                    )
            case pb.Checkpoint():
                await self._say(pb.RunBackupResponse(checkpoint=event))
            case pb.DiskDone():
                await self._say(pb.RunBackupResponse(disk_done=event))

    async def _look_after(self, snapshot: Snapshot) -> None:
        """Ends the copy when somebody removes the snapshot: what is read from then on may be anything."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._confirm(snapshot)

    async def _confirm(self, snapshot: Snapshot) -> None:
        if not await snapshot.exists():
            raise SendenseError(
                Reason.REASON_SNAPSHOT_LOST,
                f"somebody removed the snapshot of VM {self._start.vm_name} while it was read",
                remedy="What was copied is not consistent and was discarded. Start the backup again.",
                vm=self._start.vm_name,
            )

    # --- saying things ---

    async def _phase(self, phase: pb.AgentPhase.ValueType) -> None:
        await self._say(pb.RunBackupResponse(phase=pb.PhaseStarted(phase=phase)))

    async def _warn(self, code: str, message: str, disk_key: int = 0) -> None:
        await self._say(
            pb.RunBackupResponse(warning=pb.Warning(code=code, message=message, disk_key=disk_key))
        )

    async def _say(self, event: pb.RunBackupResponse) -> None:
        event.time.GetCurrentTime()
        event.traceparent = telemetry.traceparent()
        await self._channel.send(event)


def _cancelled(stopped: bool) -> SendenseError:
    if stopped:
        return SendenseError(
            Reason.REASON_SERVICE_STOPPING,
            "the agent was stopped while the job ran",
            remedy="Start the backup again when the agent runs.",
        )
    return SendenseError(Reason.REASON_CANCELLED, "the job was cancelled", retryable=False)
