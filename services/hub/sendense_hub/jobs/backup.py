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
from collections.abc import AsyncIterator

from google.protobuf.duration_pb2 import Duration

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, vcenters
from sendense_hub.clients.backup_stream import BackupStream
from sendense_hub.domain import job_rules, plan_rules
from sendense_hub.jobs import cancellation, job_changes, previous_points
from sendense_hub.jobs.board import LiveJob
from sendense_hub.jobs.guarded_sites import Turn
from sendense_hub.jobs.new_point import NewPoint
from sendense_hub.jobs.previous_points import Previous
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import Repository

log = logging.getLogger(__name__)

_ORPHAN_TIMEOUT_S = 120
_DISMISS_WITHIN_S = 60.0
# A hub that is being stopped has 25 s for all its jobs.
_DISMISS_WHEN_STOPPING_S = 10.0
# A repository with less than this when a write failed was full.
_FULL_BELOW_BYTES = 16 * 1024 * 1024

_QUIESCE = {
    pb.QUIESCE_REQUIRE: agent.QUIESCE_MODE_REQUIRE,
    pb.QUIESCE_TRY: agent.QUIESCE_MODE_TRY,
    pb.QUIESCE_OFF: agent.QUIESCE_MODE_OFF,
}


class BackupAttempt:
    """Runs once. After `run` returned or raised, `clean_up` must be awaited."""

    def __init__(self, workshop: Workshop, live: LiveJob) -> None:
        self._workshop = workshop
        self._live = live
        self._repository: Repository = workshop.repository(live.job.repository_name)
        self._previous: Previous = {}
        self._stream: BackupStream | None = None
        self._plan: agent.BackupPlan | None = None
        self._swept: list[str] = []
        self._login: Turn | None = None
        self._snapshot_time_us = 0
        self._copying_since = 0.0
        self._committing = False
        self._heard_end = False
        self.point = NewPoint(workshop, live)
        """What it makes."""
        self.snapshot_maybe_left = False
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
        except Exception as error:
            if self.snapshot_maybe_left and not self._heard_end:
                await self._dismiss(error)
            raise
        finally:
            for task in (conversation, stop):
                task.cancel()
            await asyncio.gather(conversation, stop, return_exceptions=True)

    async def clean_up(self) -> None:
        """Removes what is not part of a complete point. May be repeated."""
        await self.point.discard()

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
                await asyncio.to_thread(self._repository.space)
                vcenter = await catalog.run(lambda connection: vcenters.get(connection, job.vcenter_name))
                self._previous = await stack.enter_async_context(
                    previous_points.held(self._workshop, self._live, vcenter.instance_uuid)
                )
                dead = [
                    each
                    for each in await catalog.run(cleanups.listed)
                    if (each.vcenter_name, each.vm_instance_uuid) == (job.vcenter_name, job.vm_instance_uuid)
                ]
                self._swept = [each.job_id for each in dead]
                self._workshop.sites.socket(job.site_name)
                self._login = await stack.enter_async_context(self._workshop.sites.login(vcenter))
                access = await self._workshop.sites.access(
                    vcenter, operation_pb2.OPERATION_BACKUP, job.job_id
                )
            yield agent.BackupStart(
                job_id=job.job_id,
                attempt=job.attempt,
                hub_id=catalog.hub_id,
                vcenter=access,
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
            case "plan":
                await self._take_plan(event.plan, event.time.ToMicroseconds())
            case "progress":
                await live.count(job_changes.progress(event.progress, self._copying_s()))
            case "checkpoint":
                await self.point.append(event.checkpoint)
            case "warning":
                said = event.warning
                await live.change(job_changes.warn(said.code, said.message, said.disk_key))
            case "disk_done":
                await live.change(job_changes.disk_done(event.disk_done))
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
                raise await self._explained(SendenseError.from_failure(event.failed.failure))
            case unknown:
                log.warning(
                    "job %s: the agent sent %s, which this hub does not know", live.job.job_id, unknown
                )

    async def _take_plan(self, plan: agent.BackupPlan, snapshot_time_us: int) -> None:
        """The snapshot exists: makes layers and exports, and says where they are."""
        job = self._live.job
        if self._plan is not None:
            if self._plan != plan:
                raise SendenseError(Reason.REASON_INTERNAL, "the agent sent a second plan, unlike the first")
            return
        plan_rules.check_form(plan)
        self._plan, self._snapshot_time_us = plan, snapshot_time_us
        await self._live.change(job_changes.plan(plan))
        plan_rules.check_plan(
            plan,
            vcenter_uuid=next((point.vcenter_uuid for point, _ in self._previous.values()), ""),
            vm_instance_uuid=job.vm_instance_uuid,
            previous={key: disk for key, (_, disk) in self._previous.items()},
            incremental_required=job.mode == pb.BACKUP_MODE_INCREMENTAL,
        )
        space = await asyncio.to_thread(self._repository.space)
        plan_rules.check_space(plan.disks, space.free_bytes)
        exports = await self.point.open(plan, self._previous, self._swept)
        self._copying_since = time.monotonic()
        assert self._stream is not None
        log.info("job %s: %d exports are open for site %s", job.job_id, len(exports), job.site_name)
        await self._stream.say(agent.RunBackupRequest(exports=agent.OpenExports(exports=exports)))

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
        assert self._stream is not None
        await self._stream.say(
            agent.RunBackupRequest(committed=agent.CommitPoint(point_id=self.point.point_id))
        )

    async def _explained(self, error: SendenseError) -> SendenseError:
        """A failed write, with what qemu-nbd said about it."""
        if error.reason != Reason.REASON_TARGET_WRITE_FAILED:
            return error
        if words := self.point.words():
            error.metadata["qemu_nbd"] = words
        try:
            space = await asyncio.to_thread(self._repository.space)
        except SendenseError as unavailable:
            error.metadata["repository"] = unavailable.message
            return error
        if space.free_bytes < _FULL_BELOW_BYTES:
            return SendenseError(
                Reason.REASON_REPOSITORY_FULL,
                f"the repository {self._repository.name} is full: {error.message}",
                remedy="Make room in the repository; nothing of this backup was kept.",
                repository=self._repository.name,
            )
        return error

    async def _dismiss(self, cause: Exception) -> None:
        """Has the agent end the job; what it left is known afterwards, if it answers."""
        if self._stream is None or not self._stream.begun:
            return
        stopping = isinstance(cause, SendenseError) and cause.reason == Reason.REASON_SERVICE_STOPPING
        words = cause.message if isinstance(cause, SendenseError) else "the hub failed unexpectedly"
        try:
            async with asyncio.timeout(_DISMISS_WHEN_STOPPING_S if stopping else _DISMISS_WITHIN_S):
                await cancellation.uncancelled(self._hear_end(self._stream, words))
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
