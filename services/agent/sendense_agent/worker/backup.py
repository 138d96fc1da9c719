# SPDX-License-Identifier: Apache-2.0
"""One backup at the site: login, snapshot, plan, copy, confirm, remove.

It leaves nothing, however it ends, with one exception: an attempt that is *interrupted* leaves its snapshot
to the next one. Once the hub has given exports, whatever another try may cure interrupts: nothing is copied
any more, and the worker waits, with its session and its snapshot, for the next attempt (it is told to go, and
leaves the snapshot), for a cancel, or for the snapshot's age. The last two end the job.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1 import permits_pb2
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense_agent.domain.resuming import another_try_may_help
from sendense_agent.vsphere import Machine, Preflight, Session, Snapshot, VirtualDisk, find_machine, host_of
from sendense_agent.worker.channel import Channel, unpack
from sendense_agent.worker.copying import Copying, confirm
from sendense_agent.worker.logins import MoreLeases
from sendense_agent.worker.own_snapshot import OwnSnapshot
from sendense_agent.worker.permits import Permits
from sendense_agent.worker.plan import DiskPlan, plan_disk
from sendense_agent.worker.saying import Saying
from sendense_agent.worker.site import Site
from sendense_agent.worker.written import WrittenBook
from sendense_common import telemetry
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_NO_CHANGE_ID = (
    "Changed block tracking is off and could not be turned on (the VM has other snapshots, or is powered "
    "off): the next backup will have to read everything again."
)


@dataclass(frozen=True)
class End:
    """Why an attempt ends that did not end by itself."""

    error: SendenseError
    keeps_snapshot: bool = False
    """For a later attempt."""


class Backup:
    """One attempt; runs once, then its process ends."""

    def __init__(self, site: Site, channel: Channel, start: pb.BackupStart) -> None:
        self._site = site
        self._channel = channel
        self._start = start
        self._exports: asyncio.Future[pb.OpenExports] = asyncio.get_running_loop().create_future()
        self._committed: asyncio.Future[pb.CommitPoint] = asyncio.get_running_loop().create_future()
        self._written = WrittenBook()
        self._saying = Saying(channel)
        self._leases = MoreLeases(self._saying)
        self._permits = Permits(channel, self._waits)
        self._snapshot = OwnSnapshot(start, site.config.limits, self._saying, self._permits)
        self._copying = Copying(site, start.job_id, start.vm_name, self._saying.event, self._permits)
        self._audit: dict[int, bytearray] = defaultdict(bytearray)
        self._copying.audit = self._audit
        self._interrupted = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Works until `done` or `failed` has been said, or until it is to leave its snapshot.

        It ends early by `stopping`, by a cancel, or when its snapshot must not stay any longer.
        """
        work = asyncio.create_task(self._work())
        enders = {
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._stopped(stopping)),
            asyncio.create_task(self._must_go()),
        }
        end: End | None = None
        try:
            waiting = set(enders)
            while not work.done():
                done, _ = await asyncio.wait({work, *waiting}, return_when=asyncio.FIRST_COMPLETED)
                # A point that is complete stays so; what is left then is the snapshot, and it goes anyway.
                if end is None and not self._committed.done() and (ended := waiting & done):
                    end = ended.pop().result()
                    await self._end(work, end)
                waiting -= done
            if work.cancelled():
                assert end is not None
                raise end.error
            work.result()
        except SendenseError as error:
            await self._say_why(end or End(error, self._may_go_on(error)))
        finally:
            for task in (work, *enders):
                task.cancel()
            await asyncio.gather(work, *enders, return_exceptions=True)

    async def _end(self, work: asyncio.Task[None], end: End) -> None:
        if end.keeps_snapshot:
            await self._copying.checkpoint()
            if self._committed.done():
                return
        self._snapshot.stays = end.keeps_snapshot
        work.cancel()

    async def _say_why(self, end: End) -> None:
        failure = end.error.to_failure()
        if not end.keeps_snapshot:
            failed = pb.BackupFailed(failure=failure, snapshot_left=self._snapshot.may_be_left)
            await self._saying.event(pb.RunBackupResponse(failed=failed))
        elif not self._interrupted:
            self._interrupted = True
            await self._saying.event(pb.RunBackupResponse(interrupted=pb.BackupInterrupted(failure=failure)))

    def _may_go_on(self, error: SendenseError) -> bool:
        """Whether the next attempt can make use of what this one, or one before it, has done."""
        return self._of_use() and not self._committed.done() and another_try_may_help(error.reason)

    def _of_use(self) -> bool:
        return self._exports.done() or self._start.HasField("resume")

    async def _listen(self) -> End:
        """Takes what the hub says; returns why the backup has to end."""
        while (wrapped := await self._channel.receive()) is not None:
            request = unpack(wrapped, pb.RunBackupRequest)
            if request is None:
                answer = unpack(wrapped, permits_pb2.PermitAnswer)
                if answer is not None:
                    self._permits.hear(answer)
                continue
            match request.WhichOneof("message"):
                case "audit":
                    if not self._exports.done():  # said again after a rejoin
                        self._audit[request.audit.disk_key] += request.audit.records
                case "written":
                    if not self._exports.done():  # said again after a rejoin
                        self._written.hear(request.written)
                case "lease":
                    self._leases.hear(request.lease)
                case "exports":
                    if not self._exports.done():
                        self._exports.set_result(request.exports)
                case "committed":
                    if not self._committed.done():
                        self._committed.set_result(request.committed)
                case "limit":
                    await self._copying.limit(request.limit.bytes_per_second)
                case "cancel":
                    cancel = request.cancel
                    log.info("job %s is cancelled: %s", self._start.job_id, cancel.cause)
                    error = SendenseError(Reason.REASON_CANCELLED, cancel.cause, retryable=False)
                    return End(error, cancel.keep_snapshot)
        return self._agent_stopped()

    async def _stopped(self, stopping: asyncio.Event) -> End:
        await stopping.wait()
        return self._agent_stopped()

    def _agent_stopped(self) -> End:
        error = SendenseError(
            Reason.REASON_SERVICE_STOPPING,
            "the agent was stopped while the job ran",
            remedy="Start the backup again when the agent runs.",
        )
        return End(error, self._of_use())

    async def _must_go(self) -> End:
        return End(await self._snapshot.must_go)

    async def _work(self) -> None:
        start, say = self._start, self._saying
        self._site.remove_dead_sockets()
        await say.phase(pb.AGENT_PHASE_LOGIN)
        operation = operation_pb2.OPERATION_BACKUP
        async with self._site.session(start.vcenter, operation, self._leases) as session:
            await say.phase(pb.AGENT_PHASE_PREFLIGHT)
            with telemetry.span("preflight"):
                machine = await find_machine(session, start.vm_instance_uuid, start.vm_name)
                found = await self._snapshot.found(machine)
                machine.preflight(found.disks if found else None)
                just_enabled = await machine.enable_changed_block_tracking()
                await machine.refresh()
            async with self._snapshot.held(session, machine, found) as snapshot:
                try:
                    plans = await self._plan(
                        session, machine, snapshot, again=found is not None, just_enabled=just_enabled
                    )
                    exports = await self._exports
                    await say.phase(pb.AGENT_PHASE_COPY)
                    with telemetry.span("copy", disks=len(plans)):
                        self._copying.host = await host_of(session, machine.reference)
                        await self._copying.run(session, snapshot, plans, exports, self._written)
                    await say.phase(pb.AGENT_PHASE_CONFIRM)
                    with telemetry.span("confirm snapshot"):
                        # One that is being removed still has its name, and its files change already.
                        await machine.snapshot_tasks_ended()
                        await confirm(snapshot, start.vm_name)
                    for plan in plans:
                        await self._copying.tell_mismatches(plan.disk.key)
                except SendenseError as error:
                    if not self._may_go_on(error):
                        raise
                    await self._wait_for_another_attempt(error)
                await say.event(pb.RunBackupResponse(copied=pb.DisksCopied()))
                await self._committed
                await say.phase(pb.AGENT_PHASE_REMOVE_SNAPSHOT)
            # From here on the point is complete: a snapshot that stays is a warning, not a failure.
        done = pb.BackupDone(snapshot_removed=not self._snapshot.may_be_left)
        await say.event(pb.RunBackupResponse(done=done))

    async def _wait_for_another_attempt(self, error: SendenseError) -> NoReturn:
        """Nothing runs any more but the session and the watch over the snapshot; ends by being cancelled."""
        log.warning("job %s: interrupted: %s", self._start.job_id, error)
        await self._say_why(End(error, keeps_snapshot=True))
        await asyncio.Event().wait()
        raise AssertionError

    async def _plan(
        self, session: Session, machine: Machine, snapshot: Snapshot, *, again: bool, just_enabled: bool
    ) -> list[DiskPlan]:
        """Asks, and says it. `again`: the snapshot is an earlier attempt's."""
        await self._saying.phase(pb.AGENT_PHASE_PLAN)
        for code, message in snapshot.warnings:
            await self._saying.warn(code, message)
        previous = {each.key: each for each in self._start.previous_disks}
        begun = {each.key: each for each in self._start.resume.disks}
        with telemetry.span("ask for changed areas"):
            found = machine.preflight(snapshot.disks if again else None)
            frozen = {disk.key: disk for disk in snapshot.disks}
            if not again:  # else disks may have come and gone since
                _refuse_other_disks(machine.name, found, frozen)
            plans = [
                await plan_disk(
                    snapshot,
                    frozen[disk.key],
                    previous.get(disk.key),
                    tracking_just_enabled=just_enabled,
                    trusted=disk.key not in self._start.untrusted_disk_keys,
                    begun=begun.get(disk.key),
                )
                for disk in found.eligible
            ]
        if self._start.require_incremental:
            _refuse_fulls(machine.name, plans)
        for plan in plans:
            if not plan.disk.change_id:
                await self._saying.warn("no_change_id", _NO_CHANGE_ID, plan.disk.key)
        told = pb.BackupPlan(
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
            vm_config_json=await snapshot.config_json(),
            nvram=await machine.nvram(),
        )
        if made_at := await snapshot.made_at():
            told.snapshot_time.FromDatetime(made_at)
        await self._saying.event(pb.RunBackupResponse(plan=told))
        return plans

    async def _waits(self, kind: permits_pb2.PermitKind.ValueType, what: str) -> None:
        host = kind == permits_pb2.PERMIT_KIND_HOST_READ
        code = "waited_for_host" if host else "waited_for_datastore"
        await self._saying.warn(code, f"It had to wait for {what}.")


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
