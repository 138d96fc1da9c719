# SPDX-License-Identifier: Apache-2.0
"""A request becomes a job: finds the VM, keeps the job, puts it in the queue."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from sendense.agent.v1.agent_service_pb2 import VirtualMachine
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import backup_service_pb2, vcenter_service_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import audit_log, telemetry
from sendense_common.errors import SendenseError
from sendense_hub.catalog import jobs, vcenters
from sendense_hub.catalog.jobs import Origin
from sendense_hub.jobs.board import end
from sendense_hub.jobs.engine import Engine
from sendense_hub.jobs.workshop import Workshop

DEFAULT_REPOSITORY = "default"
Found = list[tuple[str, VirtualMachine]]
Refusals = list[tuple[vcenter_service_pb2.Vcenter, SendenseError]]


class Intake:
    """Accepts backups."""

    def __init__(self, workshop: Workshop, engine: Engine) -> None:
        self._workshop = workshop
        self._engine = engine

    async def accept(self, request: backup_service_pb2.StartBackupRequest) -> pb.Job:
        """The job of a valid request; the same request again gives the same job.

        Raises:
            SendenseError: see BackupService.StartBackup.
        """
        catalog = self._workshop.catalog
        before = await catalog.run(lambda connection: jobs.by_request(connection, request.request_id))
        if before is not None:
            return await self._queued(before)
        repository = self._workshop.repository(request.repository_name or DEFAULT_REPOSITORY)
        job = pb.Job(
            job_id=str(uuid.uuid4()),
            state=pb.JOB_STATE_QUEUED,
            phase=pb.JOB_PHASE_QUEUED,
            mode=request.mode or pb.BACKUP_MODE_AUTO,
            quiesce=request.quiesce or pb.QUIESCE_TRY,
            repository_name=repository.name,
            trace_id=telemetry.trace_id(),
        )
        job.create_time.GetCurrentTime()
        await self._resolve(job, request.vm, request.vcenter_name)
        origin = Origin(request.request_id, telemetry.traceparent())

        def keep(connection: sa.Connection) -> pb.Job:
            twin = jobs.by_request(connection, request.request_id)
            if twin is None:
                if job.state == pb.JOB_STATE_QUEUED:
                    jobs.refuse_busy(connection, job)  # known before it is asked whether the site is there
                    self._fail_if_offline(job)
                jobs.insert(connection, job, origin)
                audit_log.record_blocking("backup.start", subject=job.job_id, **_facts(job))
            return twin or job

        async def keep_and_queue() -> pb.Job:
            return await self._queued(await catalog.run(keep))

        return await asyncio.shield(keep_and_queue())  # a caller that hangs up leaves no job without a turn

    def _fail_if_offline(self, job: pb.Job) -> None:
        """Who asks now is told now; a site that goes away later is waited for."""
        try:
            self._workshop.sites.socket(job.site_name)
        except SendenseError as refusal:
            _refuse(job, refusal)

    async def _queued(self, job: pb.Job) -> pb.Job:
        """The job, which has its place in the queue for certain."""
        if job.state == pb.JOB_STATE_QUEUED:
            await self._engine.enqueue(job)
        return self._workshop.board.current(job)

    async def _resolve(self, job: pb.Job, named: str, vcenter_name: str) -> None:
        """Fills in VM, vCenter and site. A vCenter that had to be asked and refused makes it a failed job."""
        catalog = self._workshop.catalog
        if vcenter_name:
            known = [await catalog.run(lambda connection: vcenters.get(connection, vcenter_name))]
        else:
            known = await catalog.run(vcenters.listed)
        found = await self._find(named, vcenter_name)
        refusals: Refusals = []
        if not found:
            refusals = await self._refresh_all(known)
            found = await self._find(named, vcenter_name)
        if len(found) == 1:
            job.vcenter_name, machine = found[0]
            job.vm_name, job.vm_instance_uuid = machine.name, machine.instance_uuid
            job.site_name = next(each.site_name for each in known if each.name == job.vcenter_name)
        elif found:
            raise _ambiguous(named, found)
        elif refusals:
            vcenter, refusal = refusals[0]
            job.vcenter_name, job.site_name, job.vm_name = vcenter.name, vcenter.site_name, named
            _refuse(job, refusal)
        else:
            raise _not_found(named, vcenter_name, any_vcenter=bool(known))

    async def locate(
        self, named: str, vcenter_name: str
    ) -> tuple[vcenter_service_pb2.Vcenter, VirtualMachine]:
        """One VM and its vCenter, as last seen; who was never seen is looked for.

        Raises:
            SendenseError: VM_NOT_FOUND, VM_AMBIGUOUS, VCENTER_NOT_FOUND, and what a vCenter refuses with.
        """
        catalog = self._workshop.catalog
        known = await catalog.run(vcenters.listed)
        if vcenter_name:
            known = [await catalog.run(lambda connection: vcenters.get(connection, vcenter_name))]
        found = await self._find(named, vcenter_name)
        refusals: Refusals = []
        if not found:
            refusals = await self._refresh_all(known)
            found = await self._find(named, vcenter_name)
        if len(found) > 1:
            raise _ambiguous(named, found)
        if not found and refusals:
            raise refusals[0][1]
        if not found:
            raise _not_found(named, vcenter_name, any_vcenter=bool(known))
        return next(each for each in known if each.name == found[0][0]), found[0][1]

    async def refresh(self, vcenter: vcenter_service_pb2.Vcenter) -> None:
        """Reads the inventory of one vCenter through its site's agent."""
        identity, machines = await self._workshop.sites.virtual_machines(vcenter)

        def keep(connection: sa.Connection) -> None:
            vcenters.set_identity(connection, vcenter.name, identity)
            vcenters.replace_inventory(connection, vcenter.name, machines)

        await self._workshop.catalog.run(keep)

    async def _refresh_all(self, known: Sequence[vcenter_service_pb2.Vcenter]) -> Refusals:
        """Reads the inventory of each; one that refuses hides no other."""
        refusals = []
        for vcenter in known:
            try:
                await self.refresh(vcenter)
            except SendenseError as error:
                refusals.append((vcenter, error))
        return refusals

    async def _find(self, named: str, vcenter_name: str) -> Found:
        return await self._workshop.catalog.run(
            lambda connection: vcenters.find_machines(connection, named, vcenter_name)
        )


def _refuse(job: pb.Job, refusal: SendenseError) -> None:
    """It fails before it was queued."""
    refusal.metadata.update(vm=job.vm_name, vcenter=job.vcenter_name)
    job.start_time.GetCurrentTime()
    end(job, pb.JOB_STATE_FAILED, refusal)


def _facts(job: pb.Job) -> dict[str, Any]:
    """For the audit log."""
    return {
        "vm": job.vm_name,
        "vcenter": job.vcenter_name,
        "site": job.site_name,
        "repository": job.repository_name,
        "mode": pb.BackupMode.Name(job.mode).removeprefix("BACKUP_MODE_").lower(),
    }


def _not_found(named: str, vcenter_name: str, *, any_vcenter: bool) -> SendenseError:
    where = f"vCenter {vcenter_name}" if vcenter_name else "any vCenter"
    return SendenseError(
        Reason.REASON_VM_NOT_FOUND,
        f"there is no VM {named!r} at {where}",
        remedy="`sendense vm list` shows them all." if any_vcenter else "Add a vCenter first.",
        vm=named,
    )


def _ambiguous(named: str, found: Found) -> SendenseError:
    candidates = ", ".join(
        f"{machine.name} ({machine.moref}, {machine.instance_uuid}) at {vcenter}"
        for vcenter, machine in found
    )
    return SendenseError(
        Reason.REASON_VM_AMBIGUOUS,
        f"{named!r} fits {len(found)} VMs: {candidates}",
        remedy="Name the vCenter with --vcenter, or give the instance UUID instead of the name.",
        vm=named,
        candidates=candidates,
    )
