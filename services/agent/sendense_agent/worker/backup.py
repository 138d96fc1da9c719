# SPDX-License-Identifier: Apache-2.0
"""One backup at the site: login, snapshot, plan, copy, confirm, remove. Leaves nothing however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1 import permits_pb2
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense_agent.vsphere import (
    Machine,
    Preflight,
    Session,
    Snapshot,
    Space,
    VirtualDisk,
    datastores_of,
    find_machine,
    host_of,
    place,
    space_on,
)
from sendense_agent.worker.channel import Channel, unpack
from sendense_agent.worker.copying import Copying, confirm
from sendense_agent.worker.permits import Permits
from sendense_agent.worker.plan import DiskPlan, plan_disk
from sendense_agent.worker.site import Site
from sendense_agent.worker.watch import SnapshotWatch, below_floor
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed

log = logging.getLogger(__name__)

_NO_CHANGE_ID = (
    "Changed block tracking is off and could not be turned on (the VM has other snapshots, or is powered "
    "off): the next backup will have to read everything again."
)


class Backup:
    """Runs once, then its process ends."""

    def __init__(self, site: Site, channel: Channel, start: pb.BackupStart) -> None:
        self._site = site
        self._channel = channel
        self._start = start
        self._exports: asyncio.Future[pb.OpenExports] = asyncio.get_running_loop().create_future()
        self._committed: asyncio.Future[pb.CommitPoint] = asyncio.get_running_loop().create_future()
        self._must_end: asyncio.Future[SendenseError] = asyncio.get_running_loop().create_future()
        self._permits = Permits(channel, self._waits)
        self._copying = Copying(site, start.job_id, start.vm_name, self._say, self._permits)
        self._snapshot_left = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `done` or `failed` has been said.

        It ends early by `stopping`, by a cancel, or when its snapshot must not stay any longer.
        """
        work = asyncio.create_task(self._work())
        listening = asyncio.create_task(self._listen())
        stop = asyncio.create_task(_stopped(stopping))
        giving_way = asyncio.create_task(_result(self._must_end))
        cause: SendenseError | None = None
        try:
            enders = {listening, stop, giving_way}
            while not work.done():
                done, _ = await asyncio.wait({work, *enders}, return_when=asyncio.FIRST_COMPLETED)
                # A point that is complete stays so; what is left then is the snapshot, and it goes anyway.
                if cause is None and not self._committed.done():
                    for ender in done & enders:
                        cause = ender.result()
                        work.cancel()
                enders -= done
            if work.cancelled():
                assert cause is not None
                raise cause
            work.result()
        except SendenseError as error:
            failed = pb.BackupFailed(failure=(cause or error).to_failure(), snapshot_left=self._snapshot_left)
            await self._say(pb.RunBackupResponse(failed=failed))
        finally:
            for task in (work, listening, stop, giving_way):
                task.cancel()
            await asyncio.gather(work, listening, stop, giving_way, return_exceptions=True)

    async def _listen(self) -> SendenseError:
        """Takes what the hub says; returns why the backup has to end."""
        while (wrapped := await self._channel.receive()) is not None:
            request = unpack(wrapped, pb.RunBackupRequest)
            if request is None:
                answer = unpack(wrapped, permits_pb2.PermitAnswer)
                if answer is not None:
                    self._permits.hear(answer)
                continue
            match request.WhichOneof("message"):
                case "exports":
                    if not self._exports.done():  # said again after a rejoin
                        self._exports.set_result(request.exports)
                case "committed":
                    if not self._committed.done():
                        self._committed.set_result(request.committed)
                case "limit":
                    await self._copying.limit(request.limit.bytes_per_second)
                case "cancel":
                    log.info("job %s is cancelled: %s", self._start.job_id, request.cancel.cause)
                    return SendenseError(Reason.REASON_CANCELLED, request.cancel.cause, retryable=False)
        return _agent_stopped()

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
            async with (
                self._room(session, machine),
                self._snapshot(machine) as snapshot,
                self._watched(session, machine),
            ):
                plans = await self._plan(session, machine, snapshot, just_enabled=just_enabled)
                exports = await self._exports
                await self._phase(pb.AGENT_PHASE_COPY)
                with telemetry.span("copy", disks=len(plans)):
                    self._copying.host = await host_of(session, machine.reference)
                    await self._copying.run(session, snapshot, plans, exports)
                await self._phase(pb.AGENT_PHASE_CONFIRM)
                with telemetry.span("confirm snapshot"):
                    await confirm(snapshot, start.vm_name)
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
    async def _room(self, session: Session, machine: Machine) -> AsyncIterator[None]:
        """Waits until each datastore of the VM may have one snapshot more, for as long as the block runs."""
        stores = [await place(session, each) for each in datastores_of(machine.devices)]
        async with self._permits.held(permits_pb2.PERMIT_KIND_DATASTORE_SNAPSHOT, stores):
            await machine.refresh()  # disks may have come and gone meanwhile
            spaces = [await space_on(session, each) for each in datastores_of(machine.devices)]
            outcome = f"no snapshot of VM {machine.name} was made"
            if full := below_floor(spaces, self._site.config.limits, machine.name, outcome):
                raise full
            await self._phase(pb.AGENT_PHASE_SNAPSHOT)
            yield

    @contextlib.asynccontextmanager
    async def _watched(self, session: Session, machine: Machine) -> AsyncIterator[None]:
        """Ends the backup when its snapshot must go, also when nobody can be asked."""
        stores = datastores_of(machine.devices)

        async def spaces() -> list[Space]:
            return [await space_on(session, each) for each in stores]

        async def look() -> None:
            try:
                must_end = await SnapshotWatch(
                    self._site.config.limits, machine.name, spaces, self._warn
                ).run()
            except Exception:
                log.exception("job %s: nobody looks after its snapshot any more", self._start.job_id)
                raise
            log.warning("job %s: %s", self._start.job_id, must_end)
            self._must_end.set_result(must_end)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _snapshot(self, machine: Machine) -> AsyncIterator[Snapshot]:
        """One snapshot, gone when the block ends, whatever happens in it or while it is made."""
        start = self._start
        making = asyncio.create_task(machine.create_snapshot(start.hub_id, start.job_id, start.quiesce))
        try:
            with telemetry.span("create snapshot"):
                snapshot = await asyncio.shield(making)
        except BaseException:
            # vSphere may have made it, or may go on making it, and nobody else would know of it.
            await undisturbed(self._remove_unknown(machine, making))
            raise
        try:
            yield snapshot
        finally:
            with telemetry.span("remove snapshot"):
                await undisturbed(self._remove(snapshot))

    async def _remove(self, snapshot: Snapshot) -> None:
        try:
            await snapshot.remove()
        except SendenseError as error:
            self._snapshot_left = True
            log.error("the snapshot %s was not removed: %s", snapshot.moref, error)
            await self._warn("snapshot_not_removed", error.message)

    async def _remove_unknown(self, machine: Machine, making: asyncio.Task[Snapshot]) -> None:
        """Removes what a call that failed, or was not waited for, may have made."""
        await asyncio.wait({making})
        try:
            found = await machine.own_snapshots(self._start.hub_id, {self._start.job_id})
            for snapshot in found:
                await self._remove(snapshot)
            if not found and not _is_vsphere_answer(making):
                self._snapshot_left = True  # the task may still run, and make it later
        except SendenseError as error:
            self._snapshot_left = True
            log.error("whether there is a snapshot of job %s is not known: %s", self._start.job_id, error)

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
            _refuse_other_disks(machine.name, found, frozen)
            plans = [
                await plan_disk(
                    snapshot, frozen[disk.key], previous.get(disk.key), tracking_just_enabled=just_enabled
                )
                for disk in found.eligible
            ]
        if self._start.require_incremental:
            _refuse_fulls(machine.name, plans)
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

    # --- saying things ---

    async def _phase(self, phase: pb.AgentPhase.ValueType) -> None:
        await self._say(pb.RunBackupResponse(phase=pb.PhaseStarted(phase=phase)))

    async def _waits(self, kind: permits_pb2.PermitKind.ValueType, what: str) -> None:
        host = kind == permits_pb2.PERMIT_KIND_HOST_READ
        await self._warn("waited_for_host" if host else "waited_for_datastore", f"It had to wait for {what}.")

    async def _warn(self, code: str, message: str, disk_key: int = 0) -> None:
        await self._say(
            pb.RunBackupResponse(warning=pb.Warning(code=code, message=message, disk_key=disk_key))
        )

    async def _say(self, event: pb.RunBackupResponse) -> None:
        event.time.GetCurrentTime()
        event.traceparent = telemetry.traceparent()
        await self._channel.send(event)


def _is_vsphere_answer(making: asyncio.Task[Snapshot]) -> bool:
    """Whether it ended by a word of vSphere's, not by a connection or a deadline."""
    error = making.exception()
    return error is None or (isinstance(error, SendenseError) and "fault" in error.metadata)


def _refuse_other_disks(vm_name: str, looked_at: Preflight, frozen: Mapping[int, VirtualDisk]) -> None:
    """Raises SNAPSHOT_FAILED unless the snapshot has just the disks that were looked at before it."""
    known = {disk.key for disk in (*looked_at.eligible, *looked_at.skipped)}
    wrong = [f"lacks {disk.label}" for disk in looked_at.eligible if disk.key not in frozen]
    wrong += [f"also has {disk.label}" for key, disk in frozen.items() if key not in known]
    if wrong:
        raise SendenseError(
            Reason.REASON_SNAPSHOT_FAILED,
            f"the snapshot of VM {vm_name} {', '.join(wrong)}",
            remedy="Somebody changed the VM's disks just now. Start the backup again.",
            retryable=True,
            vm=vm_name,
        )


def _refuse_fulls(vm_name: str, plans: list[DiskPlan]) -> None:
    """Raises INCREMENTAL_NOT_POSSIBLE if any disk would be copied in full."""
    fulls = [plan for plan in plans if plan.mode != pb.DISK_MODE_INCREMENTAL]
    if fulls:
        why = ", ".join(f"{plan.disk.label}: {plan.reason}" for plan in fulls)
        raise SendenseError(
            Reason.REASON_INCREMENTAL_NOT_POSSIBLE,
            f"an incremental of VM {vm_name} is not possible ({why})",
            remedy="Start it with `--mode auto`, or `--mode full`.",
            vm=vm_name,
            disk=fulls[0].disk.key,
            why=why,
        )


async def _result(future: asyncio.Future[SendenseError]) -> SendenseError:
    return await future


async def _stopped(stopping: asyncio.Event) -> SendenseError:
    await stopping.wait()
    return _agent_stopped()


def _agent_stopped() -> SendenseError:
    return SendenseError(
        Reason.REASON_SERVICE_STOPPING,
        "the agent was stopped while the job ran",
        remedy="Start the backup again when the agent runs.",
    )
