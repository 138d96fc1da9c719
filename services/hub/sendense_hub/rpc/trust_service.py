# SPDX-License-Identifier: Apache-2.0
"""TrustService."""

from __future__ import annotations

import logging
import shlex
import uuid
from typing import Any

import grpc
import sqlalchemy as sa

from sendense.agent.v1.agent_service_pb2 import VirtualMachine
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import trust_service_pb2 as pb
from sendense.hub.v1.trust_service_pb2_grpc import TrustServiceServicer
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, jobs, points, trust
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.domain.times import to_timestamp
from sendense_hub.jobs.intake import Intake
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.rpc import checks

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_MOST_ROWS = 100
_MANY = 10_000


class TrustService(TrustServiceServicer):
    """Whether what vSphere says about changed blocks is believed."""

    def __init__(self, workshop: Workshop, intake: Intake) -> None:
        self._workshop = workshop
        self._intake = intake

    async def GetTrust(self, request: pb.GetTrustRequest, context: _Context) -> pb.GetTrustResponse:
        """See the contract."""
        return pb.GetTrustResponse(trust=await self._trust(*await self._find(request)))

    async def AcceptTracking(
        self, request: pb.AcceptTrackingRequest, context: _Context
    ) -> pb.AcceptTrackingResponse:
        """See the contract."""
        vcenter, machine = await self._find(request)

        def accept(connection: sa.Connection) -> None:
            known = trust.Machine(vcenter.instance_uuid, machine.instance_uuid)
            happened = trust.events(connection, known)
            wanted = sorted(trust.mistrusted(happened))
            unread = sorted(set(wanted) & trust.never_read_whole(happened))
            if unread:
                raise SendenseError(
                    Reason.REASON_NOT_READ_WHOLE,
                    f"of VM {machine.name}, disk {', '.join(map(str, unread))} was not read as a whole since "
                    "its changed block tracking left something out: more may be missing in its points",
                    remedy="Back it up once more: "
                    f"`sendense backup start {shlex.quote(machine.name)}`. Then accept.",
                    vm=machine.name,
                )
            for key in wanted:
                event = trust.Event(trust.ACCEPTED, key, message="an operator takes it for right again")
                trust.add(connection, known, event)

        await self._workshop.catalog.run(accept)
        await audit_log.record("trust.accept", subject=machine.name, vcenter=vcenter.name)
        log.warning("an operator trusts changed block tracking of VM %s again", machine.name)
        return pb.AcceptTrackingResponse(trust=await self._trust(vcenter, machine))

    async def ResetTracking(
        self, request: pb.ResetTrackingRequest, context: _Context
    ) -> pb.ResetTrackingResponse:
        """See the contract."""
        vcenter, machine = await self._find(request)
        catalog, sites = self._workshop.catalog, self._workshop.sites
        reset_id = str(uuid.uuid4())
        left = PendingCleanup(reset_id, vcenter.name, machine.instance_uuid, machine.name)
        known = trust.Machine(vcenter.instance_uuid, machine.instance_uuid)

        def begin(connection: sa.Connection) -> None:
            _refuse_while_busy(connection, vcenter, machine)
            cleanups.add(connection, left)  # whoever dies now, its snapshot is removed

        def end(connection: sa.Connection) -> None:
            cleanups.done(connection, [reset_id])
            for disk in machine.disks:
                if not disk.unprotectable_reason:
                    words = f"{disk.label}: an operator had tracking turned off and on"
                    trust.add(connection, known, trust.Event(trust.RESET_ORDERED, disk.key, message=words))

        await catalog.run(begin)
        await audit_log.record("trust.reset", subject=machine.name, vcenter=vcenter.name)
        try:
            await sites.reset_tracking(vcenter, catalog.hub_id, machine.instance_uuid, machine.name, reset_id)
        except SendenseError as error:
            if error.reason == Reason.REASON_RESET_REFUSED:
                await catalog.run(lambda connection: cleanups.done(connection, [reset_id]))
            raise
        await catalog.run(end)
        return pb.ResetTrackingResponse(trust=await self._trust(vcenter, machine))

    async def _find(
        self, request: pb.GetTrustRequest | pb.AcceptTrackingRequest | pb.ResetTrackingRequest
    ) -> tuple[Vcenter, VirtualMachine]:
        checks.text("vm", request.vm)
        checks.text("vcenter_name", request.vcenter_name, required=False)
        return await self._intake.locate(request.vm, request.vcenter_name)

    async def _trust(self, vcenter: Vcenter, machine: VirtualMachine) -> pb.MachineTrust:
        known = trust.Machine(vcenter.instance_uuid, machine.instance_uuid)

        def read(connection: sa.Connection) -> pb.MachineTrust:
            happened = trust.events(connection, known)
            audits = trust.audits(connection, vcenter.name, machine.instance_uuid)
            known_points = points.listed(
                connection, vm=machine.instance_uuid, vcenter_name=vcenter.name, limit=_MOST_ROWS
            )
            labels = {disk.key: disk.label for point in reversed(known_points) for disk in point.disks}
            mistrusted, since = trust.mistrusted(happened), trust.since(happened)
            answer = pb.MachineTrust(
                vcenter_name=vcenter.name, vm_name=machine.name, vm_instance_uuid=machine.instance_uuid
            )
            for key, label in sorted(labels.items()):
                of_disk = [each for each in audits if each.disk_key == key]
                answer.disks.add(
                    key=key,
                    label=label,
                    trusted=key not in mistrusted,
                    since_time=to_timestamp(since.get(key)),
                    audited_bytes=sum(each.audited_bytes for each in of_disk),
                    audit_mismatches=sum(each.mismatches for each in of_disk),
                )
            for event in happened[: -_MOST_ROWS - 1 : -1]:
                answer.events.add(
                    time=to_timestamp(event.time_us),
                    disk_key=event.disk_key,
                    kind=event.kind,
                    job_id=event.job_id,
                    message=event.message,
                )
            for audit in audits[:_MOST_ROWS]:
                answer.audits.add(
                    job_id=audit.job_id,
                    time=to_timestamp(audit.time_us),
                    disk_key=audit.disk_key,
                    audited_bytes=audit.audited_bytes,
                    mismatches=audit.mismatches,
                )
            return answer

        return await self._workshop.catalog.run(read)


def _refuse_while_busy(connection: sa.Connection, vcenter: Vcenter, machine: VirtualMachine) -> None:
    """A reset while a backup runs would take its snapshot for somebody else's."""
    for job in jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY):
        if (job.vcenter_name, job.vm_instance_uuid) == (vcenter.name, machine.instance_uuid):
            raise SendenseError(
                Reason.REASON_VM_BUSY,
                f"job {job.job_id} of VM {machine.name} has not ended yet",
                remedy=f"Wait for it with `sendense job watch {job.job_id[:8]}`, then reset.",
                vm=machine.name,
                job=job.job_id,
            )
