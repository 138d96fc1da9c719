# SPDX-License-Identifier: Apache-2.0
"""An agent that plays what a test wrote: real gRPC, real writes into real exports, no vSphere."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from tests.integration.repository.kit import write

from sendense.agent.v1 import agent_service_pb2 as service_pb
from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceServicer, add_AgentServiceServicer_to_server
from sendense.common.v1 import act_pb2
from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense_common import protocol, rpc
from sendense_common.errors import SendenseError
from sendense_hub.repository import Record

SITE, VCENTER, VCENTER_UUID = "site-a", "vc", "0b7e6a1c-0000-4000-8000-000000000001"
MACHINE, MACHINE_NAME = "5029aa00-0000-4000-8000-000000000002", "web"
MIB = 1024 * 1024
CAPACITY = 4 * MIB + 512

log = logging.getLogger(__name__)

Writes = Mapping[int, Mapping[int, bytes]]
Script = Callable[["ScriptedJob"], Awaitable[None]]


@dataclass
class Drop:
    """How the stream ends below the hub: None is a clean end."""

    status: grpc.StatusCode | None


@dataclass
class ScriptedJob:
    """One job at the agent: what it has said, what it has heard."""

    start: pb.BackupStart
    exports_dir: Path
    events: list[pb.RunBackupResponse] = field(default_factory=list)
    heard: list[pb.RunBackupRequest] = field(default_factory=list)
    acked: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    drops: list[Drop] = field(default_factory=list)
    progress: dict[int, pb.DiskProgress] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    streams_count: int = 0
    stalled: set[int] = field(default_factory=set)
    """Streams, by number, that say nothing any more."""

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].WhichOneof("event") in {"done", "failed"}

    async def say(self, *, seq: int | None = None, **event: Any) -> None:
        """One event, with the next number."""
        numbered = sum(1 for each in self.events if each.seq) + 1
        made = pb.RunBackupResponse(
            seq=seq if seq is not None else (0 if "progress" in event else numbered), **event
        )
        made.time.GetCurrentTime()
        async with self.news:
            self.events.append(made)
            self.news.notify_all()

    async def hear(self, kind: str) -> Any:
        """Waits until the hub has said something of this kind."""
        async with self.news:
            await self.news.wait_for(lambda: any(each.WhichOneof("message") == kind for each in self.heard))
        return next(getattr(each, kind) for each in self.heard if each.WhichOneof("message") == kind)

    async def is_stored(self) -> None:
        """Waits until the hub has all that was said."""
        async with self.news:
            await self.news.wait_for(lambda: self.acked >= max(each.seq for each in self.events))

    def count(self, kind: str) -> int:
        return sum(1 for each in self.heard if each.WhichOneof("message") == kind)

    async def drop(self, status: grpc.StatusCode | None) -> None:
        """Ends the stream that is open now."""
        async with self.news:
            self.drops.append(Drop(status))
            self.news.notify_all()
        async with self.news:
            await self.news.wait_for(lambda: not self.drops)

    def stall(self) -> None:
        """The stream that is open now keeps back what is said from now on."""
        self.stalled.add(self.streams_count)

    # --- what an agent does ---

    async def phase(self, phase: pb.AgentPhase.ValueType) -> None:
        await self.say(phase=pb.PhaseStarted(phase=phase))

    async def snapshot_and_plan(self, plan: pb.BackupPlan) -> list[pb.DiskExport]:
        await self.phase(pb.AGENT_PHASE_LOGIN)
        await self.phase(pb.AGENT_PHASE_SNAPSHOT)
        await self.say(plan=plan)
        return list((await self.hear("exports")).exports)

    async def copy(self, export: pb.DiskExport, writes: Mapping[int, bytes], *, done: bool = True) -> None:
        """Writes, flushes, says so."""
        uri = f"nbd+unix:///{export.export_name}?socket={self.exports_dir}/{export.export_name}.sock"
        progress = self.progress.setdefault(
            export.disk_key, pb.DiskProgress(disk_key=export.disk_key, read_bytes=MIB)
        )
        for offset, data in writes.items():
            records: list[Record] = await asyncio.to_thread(write, uri, offset, data)
            progress.copied_bytes += sum(each.length_bytes for each in records if each.sha256)
            await self.say(progress=pb.BackupProgress(disks=[progress]))
            await self.say(checkpoint=checkpoint(export.disk_key, records))
        if done:
            await self.say(disk_done=pb.DiskDone(progress=progress, duration=Duration(seconds=1)))

    async def finish(self) -> None:
        await self.phase(pb.AGENT_PHASE_CONFIRM)
        await self.say(copied=pb.DisksCopied())
        await self.hear("committed")
        await self.phase(pb.AGENT_PHASE_REMOVE_SNAPSHOT)
        await self.say(done=pb.BackupDone(snapshot_removed=True))

    async def fail(
        self, reason: Reason.ValueType, *, snapshot_left: bool = False, message: str = "no"
    ) -> None:
        failure = Failure(reason=reason, message=message)
        await self.say(failed=pb.BackupFailed(failure=failure, snapshot_left=snapshot_left))


class ScriptedAgent(AgentServiceServicer):
    """Runs `script` for each new job; obeys a cancel unless it is told not to."""

    def __init__(self, exports_dir: Path) -> None:
        self._exports_dir = exports_dir
        self.script: Script = backup({})
        self.jobs: dict[str, ScriptedJob] = {}
        self.starts: list[pb.BackupStart] = []
        self.fenced: list[ScriptedJob] = []
        """Earlier attempts that a later one has taken over from."""
        self.refusal: SendenseError | None = None
        self.cleaned: list[str] = []
        self.cleans = True
        self.snapshots: list[service_pb.FoundSnapshot] = []
        """That a vCenter has of this hub; one that is cleaned goes."""
        self.finds_count = 0
        self.obeys_cancel = True
        self.checked: list[service_pb.CheckVirtualMachineRequest] = []
        self.resets: list[service_pb.ResetChangeTrackingRequest] = []
        self.refuses_logins = False
        self.protocols = (protocol.HERE.oldest, protocol.HERE.newest)
        """The oldest and the newest one; 0: as an agent says that knows of no numbers."""
        self.logins_count = 0
        """Of all but backups, whose script is the test's."""
        self.listings_count = 0
        """How often it was asked for a vCenter's VMs."""
        self.unreachable_hosts: set[str] = set()
        self.missing_privileges: list[service_pb.MissingPrivilege] = []
        self.findings: list[service_pb.MachineFinding] = []
        self.machines = [
            service_pb.VirtualMachine(
                instance_uuid=MACHINE,
                moref="vm-1",
                name=MACHINE_NAME,
                disks=[service_pb.VirtualDisk(key=2000, label="Hard disk 2000", capacity_bytes=CAPACITY)],
            )
        ]

    @property
    def job(self) -> ScriptedJob:
        """The newest."""
        return list(self.jobs.values())[-1]

    async def GetAgent(self, request, context):
        oldest, newest = self.protocols
        return service_pb.GetAgentResponse(
            agent_id=SITE, version="test", oldest_protocol=oldest, newest_protocol=newest
        )

    def _log_in(self) -> None:
        self.logins_count += 1
        if self.refuses_logins:
            raise SendenseError(Reason.REASON_VCENTER_LOGIN_FAILED, "vim.fault.InvalidLogin", retryable=False)

    async def ListVirtualMachines(self, request, context):
        self.listings_count += 1
        self._log_in()
        if request.vcenter.host in self.unreachable_hosts:
            raise SendenseError(Reason.REASON_VCENTER_UNREACHABLE, f"{request.vcenter.host} does not answer")
        yield service_pb.ListVirtualMachinesResponse(
            vcenter_uuid=VCENTER_UUID, virtual_machines=self.machines
        )

    async def CleanUpSnapshots(self, request, context):
        self._log_in()
        asked = [each.job_id for each in request.snapshots]
        self.cleaned += asked
        if self.cleans:
            self.snapshots = [each for each in self.snapshots if each.job_id not in asked]
        return service_pb.CleanUpSnapshotsResponse(cleaned_job_ids=asked if self.cleans else [])

    async def FindSnapshots(self, request, context):
        self._log_in()
        self.finds_count += 1
        return service_pb.FindSnapshotsResponse(snapshots=self.snapshots)

    async def Reconcile(self, request, context):
        act = act_pb2.Act(what="stale_socket", where="a socket there", outcome=act_pb2.ACT_OUTCOME_DONE)
        return service_pb.ReconcileResponse(acts=[act])

    async def TestVcenter(self, request, context):
        self._log_in()
        return service_pb.TestVcenterResponse(
            vcenter_uuid=VCENTER_UUID, full_name="vCenter", missing_privileges=self.missing_privileges
        )

    async def CheckVirtualMachine(self, request, context):
        self._log_in()
        self.checked.append(request)
        return service_pb.CheckVirtualMachineResponse(findings=self.findings)

    async def ResetChangeTracking(self, request, context):
        self._log_in()
        self.resets.append(request)
        if self.refusal is not None:
            raise self.refusal
        return service_pb.ResetChangeTrackingResponse()

    async def RunBackup(self, request_iterator, context):
        requests = aiter(request_iterator)
        start = (await anext(requests)).start
        self.starts.append(start)
        if self.refusal is not None:
            raise self.refusal
        job = self.jobs.get(start.job_id)
        if job is not None and start.attempt > job.start.attempt and not start.after_seq:
            assert job.task is not None
            job.task.cancel()
            self.fenced.append(job)
            job = None
        if job is None:
            if start.after_seq:
                failure = Failure(reason=Reason.REASON_JOB_LOST, message="the agent was restarted")
                failed = pb.BackupFailed(failure=failure, snapshot_left=True)
                yield pb.RunBackupResponse(seq=start.after_seq + 1, failed=failed)
                return
            job = self.jobs[start.job_id] = ScriptedJob(start, self._exports_dir)
            job.task = asyncio.create_task(self._play(job))
        listening = asyncio.create_task(self._listen(job, requests))
        number = job.streams_count = job.streams_count + 1
        try:
            seen = next((n for n, event in enumerate(job.events) if event.seq > start.after_seq), None)
            index = len(job.events) if seen is None else seen
            while True:
                for event in job.events[index:]:
                    index += 1
                    if number in job.stalled:
                        await asyncio.Event().wait()
                    yield event
                if job.ended:
                    async with job.news:  # as an agent does: its last words are stored at the hub
                        await job.news.wait_for(lambda: job.acked == job.events[-1].seq)
                    return
                async with job.news:
                    dropped = job.drops.pop(0) if job.drops else None
                    job.news.notify_all()
                if dropped is not None:
                    if dropped.status is not None:
                        await context.abort(dropped.status, "the stream broke")
                    return
                async with job.news:
                    await job.news.wait_for(lambda: len(job.events) > index or job.drops)  # noqa: B023
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _play(self, job: ScriptedJob) -> None:
        try:
            await self.script(job)
        except Exception as error:  # the job ends with it: nobody waits for a script that is no more
            log.exception("the script of job %s", job.start.job_id)
            if not job.ended:
                await job.fail(Reason.REASON_INTERNAL, message=f"the script failed: {error!r}")
            raise

    async def _listen(self, job: ScriptedJob, requests: AsyncIterator[pb.RunBackupRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            async with job.news:
                if kind == "ack":
                    job.acked = max(job.acked, request.ack.seq)
                else:
                    job.heard.append(request)
                job.news.notify_all()
            if kind == "cancel" and self.obeys_cancel and not job.ended:
                assert job.task is not None
                job.task.cancel()
                await job.fail(Reason.REASON_CANCELLED)

    async def close(self) -> None:
        """Ends the scripts."""
        tasks = [job.task for job in self.jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serve_agent(socket: Path, agent: ScriptedAgent) -> AsyncIterator[None]:
    """The agent answers at `socket`."""
    one = rpc.Service("sendense.agent.v1.AgentService", add_AgentServiceServicer_to_server, agent)
    async with rpc.serve(socket, [one], stop_grace_s=0):
        try:
            yield
        finally:
            await agent.close()


def planned(key: int = 2000, **changed: Any) -> pb.PlannedDisk:
    """A disk of a plan, a full unless it is changed."""
    facts: dict[str, Any] = {
        "key": key,
        "label": f"Hard disk {key}",
        "disk_object_id": f"1-{key}",
        "backing_uuid": f"backing-{key}",
        "capacity_bytes": CAPACITY,
        "change_id": f"52 aa/{key}",
        "mode": pb.DISK_MODE_FULL,
        "mode_reason": "first_backup",
        "planned_read_bytes": MIB,
        "changed_bytes": MIB,
    }
    return pb.PlannedDisk(**{**facts, **changed})


def plan_of(*disks: pb.PlannedDisk, **changed: Any) -> pb.BackupPlan:
    """A plan for the machine."""
    facts: dict[str, Any] = {
        "vcenter_uuid": VCENTER_UUID,
        "vm_instance_uuid": MACHINE,
        "vm_name": MACHINE_NAME,
        "snapshot_moref": "snapshot-1",
        "quiesce_result": "quiesced",
        "vm_config_json": b'{"name": "web"}',
        "nvram": b"\\x00nvram",
        "disks": disks or (planned(),),
    }
    return pb.BackupPlan(**{**facts, **changed})


def checkpoint(key: int, records: list[Record]) -> pb.Checkpoint:
    """As a mover says it."""
    return pb.Checkpoint(
        disk_key=key,
        records=[
            pb.LedgerRecord(
                offset_bytes=each.offset_bytes, length_bytes=each.length_bytes, sha256=each.sha256
            )
            for each in records
        ],
    )


def backup(writes: Writes, plan: pb.BackupPlan | None = None) -> Script:
    """A backup without trouble."""

    async def script(job: ScriptedJob) -> None:
        exports = await job.snapshot_and_plan(plan or plan_of())
        await job.phase(pb.AGENT_PHASE_COPY)
        for export in exports:
            await job.copy(export, writes.get(export.disk_key, {}))
        await job.finish()

    return script


def incremental(key: int = 2000, change_id: str = "52 aa/next") -> pb.PlannedDisk:
    """A disk of a plan that is built on the point before."""
    return planned(key, mode=pb.DISK_MODE_INCREMENTAL, mode_reason="", change_id=change_id)
