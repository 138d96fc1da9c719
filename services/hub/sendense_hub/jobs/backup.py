# SPDX-License-Identifier: Apache-2.0
"""One attempt of a backup job: the hub's half of the conversation with the agent.

It ends with a complete point, or with a failure. Then `suspend` leaves everything to the next attempt, or
`dismiss` and `clean_up` leave nothing: no export, no layer, no row, no snapshot. Once the commit mark is set,
the point is complete whatever happens, and what is left to do is the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1.point_service_pb2 import RestorePoint
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, vcenters
from sendense_hub.catalog.job_plans import JobPlan
from sendense_hub.clients.backup_stream import BackupStream
from sendense_hub.domain import job_rules, plan_rules
from sendense_hub.jobs import (
    agent_words,
    auditing,
    cancellation,
    failed_writes,
    job_changes,
    previous_points,
    rate_limit,
)
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.guarded_sites import Turn
from sendense_hub.jobs.lending import Lending
from sendense_hub.jobs.new_point import NewPoint
from sendense_hub.jobs.previous_points import FullBecause, Previous
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import Repository

log = logging.getLogger(__name__)

# Without a word from the agent the attempt is interrupted: it goes on when the site is there again.
_SILENT_S = 45.0
_DISMISS_WITHIN_S = 60.0
_MISMATCHES_PER_DISK = 100

_QUIESCE = {
    pb.QUIESCE_REQUIRE: agent.QUIESCE_MODE_REQUIRE,
    pb.QUIESCE_TRY: agent.QUIESCE_MODE_TRY,
    pb.QUIESCE_OFF: agent.QUIESCE_MODE_OFF,
}


class BackupAttempt:
    """Runs once. After `run` returned or raised, `suspend` or `clean_up` must be awaited."""

    def __init__(
        self, workshop: Workshop, live: LiveJob, earlier: RestorePoint | None, kept: JobPlan | None
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
        self._repository: Repository = workshop.repository(live.job.repository_name)
        self._previous: Previous = {}
        self._full_because: FullBecause = {}
        self._untrusted: list[int] = []
        self._stream: BackupStream | None = None
        self._heard_plan: agent.BackupPlan | None = None
        self._plan: agent.BackupPlan | None = None
        self._swept: list[str] = []
        self._login: Turn | None = None
        self._lending: Lending | None = None
        self._snapshot_time_us = 0
        self._copying_since = 0.0
        self._planned_first = False
        self._committing = False
        self._heard_end = False
        self._heard_unknown = False
        self._mismatches: Counter[int] = Counter()
        self._earlier_disks = plan_rules.NONE_EARLIER
        self.point = NewPoint(workshop, live, earlier, kept)
        """What it makes."""
        self.snapshot_maybe_left = kept is not None or bool(live.job.interruptions)
        """Whether the agent may have left a snapshot, or cannot be asked."""

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
            await asyncio.wait({conversation})
            cancellation.result(conversation)
        finally:
            for task in (conversation, stop):
                task.cancel()
            await asyncio.gather(conversation, stop, return_exceptions=True)

    @property
    def got_further(self) -> bool:
        """Whether more is stored than before it."""
        return self._planned_first or any(self.point.stored_bytes.values())

    def recopied_bytes(self) -> dict[int, int]:
        """By device key: data that was written, and that the next attempt writes again."""
        lost = {}
        for disk in self._live.newest.disks:
            if disk.key in self._earlier_disks:
                copied_bytes = disk.copied_bytes - self._earlier_disks[disk.key].copied_bytes
                lost[disk.key] = max(0, copied_bytes - self.point.stored_bytes[disk.key])
        return lost

    async def suspend(self) -> None:
        """Stops writing, and leaves what there is to the next attempt. May be repeated."""
        await self.point.suspend()

    async def clean_up(self) -> None:
        """Removes what is not part of a complete point. May be repeated."""
        await self.point.discard()

    async def _converse(self) -> None:
        async with self._prepared() as start:
            self._stream = BackupStream(
                self._workshop.sites, self._live.job.site_name, start, give_up_after_s=_SILENT_S
            )
            self.snapshot_maybe_left = True
            async with (
                rate_limit.told(self._live, self._stream),
                contextlib.aclosing(self._stream.events()) as events,
            ):
                async for event in events:
                    self._heard_end = event.WhichOneof("event") in {"done", "failed"}
                    if self._heard_end:
                        await self._stream.ack(event.seq)  # what follows may raise, and this was the last one
                    await self._take(event)
                    if event.seq and not self._heard_end:
                        await self._stream.ack(event.seq)

    @contextlib.asynccontextmanager
    async def _prepared(self) -> AsyncIterator[agent.BackupStart]:
        """The first message; the points it builds on are kept while the block runs."""
        job, catalog = self._live.job, self._workshop.catalog
        async with contextlib.AsyncExitStack() as stack:
            with telemetry.span("prepare", vm=job.vm_name):
                await asyncio.to_thread(self._repository.space)  # an empty mount point is not a repository
                if await self.point.adopt():
                    raise SendenseError(
                        Reason.REASON_HUB_RESTARTED,
                        "An earlier attempt was interrupted just after the point was complete.",
                    )
                vcenter = await catalog.run(lambda connection: vcenters.get(connection, job.vcenter_name))
                self._previous, self._full_because = await stack.enter_async_context(
                    previous_points.held(self._workshop, self._live, vcenter.instance_uuid)
                )
                self._untrusted = await auditing.untrusted(self._workshop, self._live, vcenter.instance_uuid)
                dead = [
                    each
                    for each in await catalog.run(cleanups.listed)
                    if (each.vcenter_name, each.vm_instance_uuid) == (job.vcenter_name, job.vm_instance_uuid)
                ]
                self._swept = [each.job_id for each in dead]
                self._workshop.sites.socket(job.site_name)
                self._login = await stack.enter_async_context(self._workshop.sites.login(vcenter))
                operation = operation_pb2.OPERATION_BACKUP
                access = await stack.enter_async_context(
                    self._workshop.sites.access(vcenter, operation, job.job_id)
                )
                self._lending = await stack.enter_async_context(
                    Lending(self._workshop.sites, vcenter, job.job_id, self._give)
                )
            yield agent.BackupStart(
                job_id=job.job_id,
                attempt=job.attempt,
                hub_id=catalog.hub_id,
                vcenter=access,
                vm_instance_uuid=job.vm_instance_uuid,
                vm_name=job.vm_name,
                quiesce=_QUIESCE[job.quiesce],
                previous_disks=previous_points.told(self._previous),
                require_incremental=job.mode == pb.BACKUP_MODE_INCREMENTAL,
                dead_snapshots=[
                    agent.JobSnapshot(job_id=each.job_id, vm_instance_uuid=each.vm_instance_uuid)
                    for each in dead
                ],
                resume=self._resume(),
                untrusted_disk_keys=self._untrusted,
            )

    async def _give(self, given: agent.LeaseGiven) -> None:
        assert self._stream is not None
        await self._stream.say(agent.RunBackupRequest(lease=given))

    def _resume(self) -> agent.ResumeFrom | None:
        kept = self.point.kept
        if kept is None:
            return None
        return agent.ResumeFrom(
            snapshot_moref=kept.plan.snapshot_moref,
            disks=[
                agent.ResumableDisk(
                    key=disk.key,
                    disk_object_id=disk.disk_object_id,
                    backing_uuid=disk.backing_uuid,
                    capacity_bytes=disk.capacity_bytes,
                    mode=disk.mode,
                    mode_reason=disk.mode_reason,
                    eras=[
                        agent.LayerEra(snapshot_moref=era.snapshot_moref, change_id=era.change_id)
                        for era in kept.eras[disk.key]
                    ],
                )
                for disk in kept.plan.disks
                if kept.eras.get(disk.key)
            ],
        )

    async def _take(self, event: agent.RunBackupResponse) -> None:
        """One event of the agent."""
        live = self._live
        match event.WhichOneof("event"):
            case "phase":
                if event.phase.phase != agent.AGENT_PHASE_LOGIN and self._login is not None:
                    self._login.over()
                phase = job_rules.PHASES.get(event.phase.phase, pb.JOB_PHASE_UNSPECIFIED)
                if phase < pb.JOB_PHASE_COMMIT or self.point.committed:  # only the hub commits
                    await live.change(job_changes.enter(phase))
            case "lease_wanted" if self._lending is not None:
                self._lending.wanted(event.lease_wanted.request_id)
            case "logged_in" if self._lending is not None:
                self._lending.used()
            case "plan":
                # An older agent does not say when vSphere made the snapshot: it was there before its plan.
                made = event.plan.snapshot_time if event.plan.HasField("snapshot_time") else event.time
                await self._take_plan(event.plan, made.ToMicroseconds())
            case "progress":
                await live.count(job_changes.progress(event.progress, self._copying_s(), self._earlier_disks))
            case "checkpoint":
                await self.point.append(event.checkpoint)
            case "warning":
                await live.change(job_changes.warn_of(event.warning))
            case "audit_mismatch" if self._told_of(event.audit_mismatch.disk_key):
                await auditing.end_trust(self._workshop, live, self._plan, event.audit_mismatch)
            case "disk_done":
                await live.change(job_changes.disk_done(event.disk_done, self._earlier_disks))
            case "copied":
                await self._commit()
            case "done":
                self.snapshot_maybe_left = not event.done.snapshot_removed
                if not self.point.committed:
                    raise SendenseError(
                        Reason.REASON_INTERNAL, "the agent said that it is done before the point was complete"
                    )
            case "failed":
                self.snapshot_maybe_left = event.failed.snapshot_left
                raise await failed_writes.explained(agent_words.failure(event.failed.failure), self.point)
            case "interrupted":
                raise await failed_writes.explained(
                    agent_words.failure(event.interrupted.failure), self.point
                )
            case None if not self._heard_unknown:
                self._heard_unknown = True
                log.warning("job %s: the agent sent what this hub does not know", live.job.job_id)

    def _told_of(self, disk_key: int) -> bool:
        """Whether a mismatch in this disk is worth a word: after many, one more changes nothing."""
        self._mismatches[disk_key] += 1
        return self._mismatches[disk_key] <= _MISMATCHES_PER_DISK

    async def _take_plan(self, plan: agent.BackupPlan, snapshot_time_us: int) -> None:
        """The snapshot exists: makes layers and exports, and says where they are."""
        job = self._live.job
        if self._heard_plan is not None:
            if self._heard_plan != plan:
                raise SendenseError(Reason.REASON_INTERNAL, "the agent sent a second plan, unlike the first")
            return
        plan_rules.check_form(plan)
        self._heard_plan, self._snapshot_time_us = plan, snapshot_time_us
        self._plan = plan = agent.BackupPlan.FromString(plan.SerializeToString())
        if self._lending is not None:
            self._lending.planned(len(plan.disks))
        previous_points.explain(plan, self._full_because)
        went_on = self._go_on(plan)
        await self._live.change(job_changes.plan(plan, went_on))
        self._earlier_disks = job_changes.copies(self._live.job.disks)
        plan_rules.check_plan(
            plan,
            vcenter_uuid=next((point.vcenter_uuid for point, _ in self._previous.values()), ""),
            vm_instance_uuid=job.vm_instance_uuid,
            previous={key: disk for key, (_, disk) in self._previous.items()},
            incremental_required=job.mode == pb.BACKUP_MODE_INCREMENTAL,
        )
        plan_rules.check_trust(plan, self._untrusted)
        space = await asyncio.to_thread(self._repository.space)
        plan_rules.check_space(plan.disks, space.free_bytes, self._earlier_disks)
        written, exports = await self.point.open(plan, self._snapshot_time_us, self._previous, self._swept)
        await self._live.change(job_changes.keeps(self.point.kept_bytes))
        self._earlier_disks = job_changes.copies(self._live.job.disks)
        self._planned_first = not went_on
        self._copying_since = time.monotonic()
        assert self._stream is not None
        for part in written:
            await self._stream.say(agent.RunBackupRequest(written=part))
        log.info("job %s: %d exports are open for site %s", job.job_id, len(exports), job.site_name)
        async for sample in auditing.samples(self._workshop, self._live, plan, self._previous):
            await self._stream.say(agent.RunBackupRequest(audit=sample))
        await self._stream.say(agent.RunBackupRequest(exports=agent.OpenExports(exports=exports)))

    def _go_on(self, plan: agent.BackupPlan) -> str:
        """How this plan goes on with what earlier attempts left; empty when there is nothing."""
        kept = self.point.kept
        if kept is None:
            return "from_the_start" if self._live.job.interruptions else ""
        if plan.snapshot_moref == kept.plan.snapshot_moref:
            self._snapshot_time_us = kept.snapshot_time_us
            plan.quiesce_result = plan.quiesce_result or kept.plan.quiesce_result
            return "same_snapshot"
        return "new_snapshot" if any(disk.keeps_layer for disk in plan.disks) else "from_the_start"

    def _copying_s(self) -> float:
        return time.monotonic() - self._copying_since if self._copying_since else 0.0

    async def _commit(self) -> None:
        """All disks are copied and the snapshot was there to the end: the point becomes complete."""
        live = self._live
        if self.point.committed:
            return
        if live.stop_requested.is_set():
            assert live.stop_cause is not None
            raise live.stop_cause
        if self._plan is None:
            raise SendenseError(Reason.REASON_INTERNAL, "the agent said that all is copied before its plan")
        plan_rules.check_copied(live.job)
        # From here on nothing ends the conversation from outside; a cancellation that came first wins.
        self._committing = True
        try:
            await live.change(job_changes.begin_commit)
            await self.point.commit(self._plan, self._snapshot_time_us)
        finally:
            self._committing = self.point.committed
        await live.change(job_changes.has_point(self.point.point_id))
        await auditing.note_read_whole(self._workshop, live, self._plan)
        assert self._stream is not None
        await self._stream.say(
            agent.RunBackupRequest(committed=agent.CommitPoint(point_id=self.point.point_id))
        )

    async def dismiss(self, cause: SendenseError) -> None:
        """Has the agent end the job; what it left is known afterwards, if it answers."""
        stream = self._stream
        if stream is None or not stream.begun or self._heard_end or not self.snapshot_maybe_left:
            return
        if cause.reason == Reason.REASON_SITE_REVOKED:
            return  # there is nobody to talk to
        try:
            async with asyncio.timeout(_DISMISS_WITHIN_S):
                await cancellation.uncancelled(self._hear_end(stream, cause.message))
        except (SendenseError, TimeoutError) as error:
            log.warning("job %s: the agent did not end it: %s", self._live.job.job_id, error)

    async def _hear_end(self, stream: BackupStream, cause: str) -> None:
        await stream.say(agent.RunBackupRequest(cancel=agent.CancelBackup(cause=cause)))
        async with contextlib.aclosing(stream.events()) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "failed":
                        self.snapshot_maybe_left = event.failed.snapshot_left
                    case "done":
                        self.snapshot_maybe_left = not event.done.snapshot_removed
                if event.seq:
                    await stream.ack(event.seq)
