# SPDX-License-Identifier: Apache-2.0
"""AgentService."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

import sendense_common
from sendense.agent.v1 import agent_service_pb2 as pb
from sendense.agent.v1 import backup_pb2
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceServicer
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.control.job import Job
from sendense_agent.control.jobs import Jobs
from sendense_agent.control.reconciliation import Reconciliation
from sendense_agent.control.worker_process import WorkerCommand, start_worker
from sendense_agent.datapath.sources import vddk_version
from sendense_agent.worker.channel import unpack
from sendense_common import audit_log, protocol
from sendense_common.errors import SendenseError, invalid

_Context = grpc.aio.ServicerContext[Any, Any]
_LONGEST_ORPHAN_TIMEOUT_NS = 7 * 24 * 3600 * 10**9
_TOOLS = ("nbdkit", "nbdinfo", "setpriv")

M = TypeVar("M", bound=Message)


class AgentService(AgentServiceServicer):
    """What an agent does for its hub."""

    def __init__(
        self,
        agent_id: str,
        command: WorkerCommand,
        jobs: Jobs,
        reconciliation: Reconciliation,
        *,
        vddk_libdir: str = "",
    ) -> None:
        """Args: command: starts a worker; vddk_libdir: of VMware's library, if it is to be used."""
        self._reconciliation = reconciliation
        self._vddk_libdir = vddk_libdir
        self._command = command
        self._agent_id = agent_id
        self._jobs = jobs
        self._tools: dict[str, str] | None = None

    async def GetAgent(self, request: pb.GetAgentRequest, context: _Context) -> pb.GetAgentResponse:
        """See the contract."""
        if self._tools is None:
            tools = {name: await _version(name) for name in _TOOLS}
            if self._vddk_libdir:
                tools["vddk"] = await vddk_version(self._vddk_libdir)
            self._tools = tools
        return pb.GetAgentResponse(
            agent_id=self._agent_id,
            version=sendense_common.__version__,
            tools=self._tools,
            job_ids=self._jobs.ids(),
            oldest_protocol=protocol.HERE.oldest,
            newest_protocol=protocol.HERE.newest,
        )

    async def ListVirtualMachines(
        self, request: pb.ListVirtualMachinesRequest, context: _Context
    ) -> AsyncIterator[pb.ListVirtualMachinesResponse]:
        """See the contract."""
        async with (
            start_worker(self._command, request) as worker,
            contextlib.aclosing(worker.messages()) as messages,
        ):
            async for wrapped in messages:
                page = unpack(wrapped, pb.ListVirtualMachinesResponse)
                if page is not None:
                    yield page

    async def TestVcenter(self, request: pb.TestVcenterRequest, context: _Context) -> pb.TestVcenterResponse:
        """See the contract."""
        return await self._ask(request, pb.TestVcenterResponse)

    async def CheckVirtualMachine(
        self, request: pb.CheckVirtualMachineRequest, context: _Context
    ) -> pb.CheckVirtualMachineResponse:
        """See the contract."""
        return await self._ask(request, pb.CheckVirtualMachineResponse)

    async def ResetChangeTracking(
        self, request: pb.ResetChangeTrackingRequest, context: _Context
    ) -> pb.ResetChangeTrackingResponse:
        """See the contract."""
        who = audit_log.system_actor()
        async with audit_log.recorded("trust.reset", subject=request.vm_name, actor=who):
            return await self._ask(request, pb.ResetChangeTrackingResponse)

    async def FindSnapshots(
        self, request: pb.FindSnapshotsRequest, context: _Context
    ) -> pb.FindSnapshotsResponse:
        """See the contract."""
        if not request.hub_id:
            raise invalid("hub_id", "is required")
        return await self._ask(request, pb.FindSnapshotsResponse)

    async def Reconcile(self, request: pb.ReconcileRequest, context: _Context) -> pb.ReconcileResponse:
        """See the contract."""
        acts = await asyncio.shield(self._reconciliation.round())
        return pb.ReconcileResponse(acts=[act.to_message() for act in acts])

    async def CleanUpSnapshots(
        self, request: pb.CleanUpSnapshotsRequest, context: _Context
    ) -> pb.CleanUpSnapshotsResponse:
        """See the contract."""
        # A hub that was restarted speaks of jobs whose workers may still be here.
        await self._jobs.end_all((each.job_id for each in request.snapshots), "the hub says that it is over")
        answer: pb.CleanUpSnapshotsResponse = await self._ask(request, pb.CleanUpSnapshotsResponse)
        who = audit_log.system_actor()
        for job_id in answer.cleaned_job_ids:
            await audit_log.record("snapshot.remove", subject=job_id, actor=who, vcenter=request.vcenter.name)
        return answer

    async def RunBackup(
        self, request_iterator: AsyncIterator[backup_pb2.RunBackupRequest], context: _Context
    ) -> AsyncIterator[backup_pb2.RunBackupResponse]:
        """See the contract."""
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "start":
            raise invalid("message", "the first one must be `start`")
        protocol.check(first.start.protocol)
        _check(first.start)
        job = await self._jobs.start_or_join(first)
        if isinstance(job, backup_pb2.BackupFailed):
            event = backup_pb2.RunBackupResponse(seq=first.start.after_seq + 1, failed=job)
            event.time.GetCurrentTime()
            yield event
            return
        listening = asyncio.create_task(_pass_on(requests, job, first.start.attempt))
        try:
            async with contextlib.aclosing(job.follow(first.start.after_seq, first.start.attempt)) as events:
                async for event in events:
                    yield event
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _ask(self, request: Message, kind: type[M]) -> M:
        """The one answer of a worker."""
        async with (
            start_worker(self._command, request) as worker,
            contextlib.aclosing(worker.messages()) as messages,
        ):
            async for wrapped in messages:
                answer = unpack(wrapped, kind)
                if answer is not None:
                    return answer
        raise SendenseError(Reason.REASON_INTERNAL, "the agent's worker ended without an answer")


async def _pass_on(requests: AsyncIterator[backup_pb2.RunBackupRequest], job: Job, attempt: int) -> None:
    async for request in requests:
        if attempt < job.attempt:
            return  # fenced: whoever speaks here may do nothing any more
        await job.tell(request)


def _check(start: backup_pb2.BackupStart) -> None:
    try:
        uuid.UUID(start.job_id)  # names files of this site
    except ValueError:
        raise invalid("start.job_id", "must be a UUID") from None
    for field in ("hub_id", "vm_instance_uuid"):
        if not getattr(start, field):
            raise invalid(f"start.{field}", "is required")
    if not start.HasField("vcenter"):
        raise invalid("start.vcenter", "is required")
    if start.attempt < 1:
        raise invalid("start.attempt", "must be 1 or more")
    if start.after_seq < 0:
        raise invalid("start.after_seq", "must be 0 or more")
    if start.quiesce not in backup_pb2.QuiesceMode.values() or not start.quiesce:
        raise invalid("start.quiesce", "is required")
    if not 0 <= start.orphan_timeout.ToNanoseconds() <= _LONGEST_ORPHAN_TIMEOUT_NS:
        raise invalid("start.orphan_timeout", "must be at most a week")
    if start.HasField("resume") and not start.resume.snapshot_moref:
        raise invalid("start.resume.snapshot_moref", "is required")


async def _version(name: str) -> str:
    """First line of what a program says about itself; empty when it is missing."""
    path = shutil.which(name)
    if path is None:
        return ""
    child = await asyncio.create_subprocess_exec(
        path, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await child.communicate()
    return (output.decode(errors="replace").splitlines() or ["?"])[0]
