# SPDX-License-Identifier: Apache-2.0
"""VcenterService."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import grpc
import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceServicer
from sendense_common import audit_log
from sendense_common.errors import SendenseError, invalid
from sendense_hub.catalog import jobs, points, sites, vcenters
from sendense_hub.domain.job_rules import ACTIVE
from sendense_hub.domain.times import to_timestamp
from sendense_hub.jobs.intake import DEFAULT_REPOSITORY, Intake
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.rpc import checks, machine_checks

_Context = grpc.aio.ServicerContext[Any, Any]
_HTTPS = 443
_MANY = 10_000


class VcenterService(VcenterServiceServicer):
    """The vCenters and what is in them."""

    def __init__(self, workshop: Workshop, intake: Intake) -> None:
        self._workshop = workshop
        self._intake = intake

    async def AddVcenter(self, request: pb.AddVcenterRequest, context: _Context) -> pb.AddVcenterResponse:
        """See the contract."""
        vcenter = request.vcenter
        checks.name("vcenter.name", vcenter.name)
        checks.text("vcenter.credential_id", vcenter.credential_id)
        _check_address(vcenter)
        _check_trust(vcenter)

        def add(connection: sa.Connection) -> pb.Vcenter:
            known = [site.name for site in sites.listed(connection) if not site.HasField("revoke_time")]
            if not vcenter.site_name:
                if len(known) != 1:
                    raise invalid("vcenter.site_name", f"is required: there are {len(known)} sites")
                vcenter.site_name = known[0]
            sites.get(connection, vcenter.site_name)
            added = vcenters.add(connection, vcenter)
            audit_log.record_blocking("vcenter.add", subject=vcenter.name, **_facts(vcenter))
            return added

        return pb.AddVcenterResponse(vcenter=await self._workshop.catalog.run(add))

    async def ChangeVcenter(
        self, request: pb.ChangeVcenterRequest, context: _Context
    ) -> pb.ChangeVcenterResponse:
        """See the contract."""
        vcenter = request.vcenter
        checks.text("vcenter.name", vcenter.name)
        _check_address(vcenter)
        if vcenter.WhichOneof("trust"):
            _check_trust(vcenter)

        def change(connection: sa.Connection) -> pb.Vcenter:
            changed = vcenters.change(connection, vcenter)
            audit_log.record_blocking("vcenter.change", subject=vcenter.name, **_facts(changed))
            return changed

        return pb.ChangeVcenterResponse(vcenter=await self._workshop.catalog.run(change))

    async def ListVcenters(
        self, request: pb.ListVcentersRequest, context: _Context
    ) -> pb.ListVcentersResponse:
        """See the contract."""
        return pb.ListVcentersResponse(vcenters=await self._workshop.catalog.run(vcenters.listed))

    async def TestVcenter(self, request: pb.TestVcenterRequest, context: _Context) -> pb.TestVcenterResponse:
        """See the contract."""
        vcenter = await self._get(request.name)
        async with audit_log.recorded("vcenter.test", subject=vcenter.name, host=vcenter.host):
            found = await self._workshop.sites.test_vcenter(vcenter)
        await self._workshop.catalog.run(
            lambda connection: vcenters.set_identity(connection, vcenter.name, found.vcenter_uuid)
        )
        missing = [f"{each.privilege} on {each.where}" for each in found.missing_privileges]
        if any(each.everywhere for each in found.missing_privileges):
            raise SendenseError(
                Reason.REASON_VCENTER_NO_PERMISSION,
                f"the login at vCenter {vcenter.name} works, but the user lacks what backups need: "
                f"{', '.join(missing)}",
                remedy="Give the user these privileges, in a role of its own, on the folders with the VMs "
                "and on their datastores.",
                vcenter=vcenter.name,
                privileges=", ".join(each.privilege for each in found.missing_privileges),
            )
        return pb.TestVcenterResponse(
            instance_uuid=found.vcenter_uuid,
            full_name=found.full_name,
            certificate_sha256=found.certificate_sha256,
            missing_privileges=missing,
        )

    async def RemoveVcenter(
        self, request: pb.RemoveVcenterRequest, context: _Context
    ) -> pb.RemoveVcenterResponse:
        """See the contract."""

        def remove(connection: sa.Connection) -> pb.Vcenter:
            vcenter = vcenters.get(connection, request.name)
            running = jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY)
            using = [job.job_id for job in running if job.vcenter_name == vcenter.name]
            if using:
                raise SendenseError(
                    Reason.REASON_VCENTER_IN_USE,
                    f"vCenter {vcenter.name!r} has jobs that have not ended: {', '.join(using)}",
                    remedy="Wait for them, or cancel them.",
                    vcenter=vcenter.name,
                )
            audit_log.record_blocking("vcenter.remove", subject=vcenter.name, **_facts(vcenter))
            return vcenters.remove(connection, vcenter.name)

        checks.text("name", request.name)
        removed = await self._workshop.catalog.run(remove)
        return pb.RemoveVcenterResponse(credential_id=removed.credential_id)

    async def ListVirtualMachines(
        self, request: pb.ListVirtualMachinesRequest, context: _Context
    ) -> pb.ListVirtualMachinesResponse:
        """See the contract."""
        catalog = self._workshop.catalog
        if request.vcenter_name:
            wanted = [await self._get(request.vcenter_name)]
        else:
            wanted = await catalog.run(vcenters.listed)
        failures = await self._refresh(wanted)
        if failures and len(wanted) == 1:
            raise failures[wanted[0].name]
        newest = await catalog.run(points.newest_by_machine)
        answer = pb.ListVirtualMachinesResponse()
        for name, error in sorted(failures.items()):
            answer.failures.add(vcenter_name=name, failure=error.to_failure())
        listed = {each.name for each in wanted} - set(failures)
        for vcenter in await catalog.run(vcenters.listed):
            if vcenter.name not in listed:
                continue
            name = vcenter.name
            machines = await catalog.run(lambda connection, name=name: vcenters.machines(connection, name))  # type: ignore[misc]
            for machine in machines:
                moment_us = newest.get((vcenter.instance_uuid, machine.instance_uuid))
                answer.virtual_machines.add(
                    vcenter_name=name,
                    instance_uuid=machine.instance_uuid,
                    moref=machine.moref,
                    name=machine.name,
                    folder=machine.folder,
                    power_state=machine.power_state,
                    host=machine.host,
                    guest=machine.guest,
                    changed_block_tracking=machine.changed_block_tracking,
                    disks=[
                        pb.ListedDisk(
                            key=disk.key,
                            label=disk.label,
                            capacity_bytes=disk.capacity_bytes,
                            unprotectable_reason=disk.unprotectable_reason,
                        )
                        for disk in machine.disks
                    ],
                    last_point_time=to_timestamp(moment_us),
                )
        return answer

    async def _refresh(self, wanted: list[pb.Vcenter]) -> dict[str, SendenseError]:
        """Reads all of them at once; which ones could not be read, and why."""
        answers = await asyncio.gather(*map(self._intake.refresh, wanted), return_exceptions=True)
        failures: dict[str, SendenseError] = {}
        for vcenter, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, SendenseError):
                failures[vcenter.name] = answer
            elif isinstance(answer, BaseException):
                raise answer
        return failures

    async def CheckVirtualMachine(
        self, request: pb.CheckVirtualMachineRequest, context: _Context
    ) -> pb.CheckVirtualMachineResponse:
        """See the contract."""
        checks.text("vm", request.vm)
        checks.text("vcenter_name", request.vcenter_name, required=False)
        checks.text("repository_name", request.repository_name, required=False)
        repository = self._workshop.repository(request.repository_name or DEFAULT_REPOSITORY)
        catalog = self._workshop.catalog
        vcenter, machine = await self._intake.locate(request.vm, request.vcenter_name)
        found = await self._workshop.sites.check_machine(
            vcenter, catalog.hub_id, machine.instance_uuid, machine.name
        )
        active = await catalog.run(
            lambda connection: jobs.listed(connection, states=sorted(ACTIVE), limit=_MANY)
        )
        identity = (vcenter.name, machine.instance_uuid)
        running = [job for job in active if (job.vcenter_name, job.vm_instance_uuid) == identity]
        made = [machine_checks.from_agent(each) for each in found]
        made += [machine_checks.of_jobs(running)]
        made += [await asyncio.to_thread(machine_checks.of_repository, repository, machine)]
        return pb.CheckVirtualMachineResponse(
            vcenter_name=vcenter.name,
            vm_name=machine.name,
            vm_instance_uuid=machine.instance_uuid,
            checks=made,
        )

    async def NotePasswordChange(
        self, request: pb.NotePasswordChangeRequest, context: _Context
    ) -> pb.NotePasswordChangeResponse:
        """See the contract."""
        vcenter = await self._get(request.name)  # first: what is not there fills no log
        await audit_log.record("vcenter.unblock", subject=vcenter.name)
        await self._workshop.sites.lift(vcenter.name)
        return pb.NotePasswordChangeResponse()

    async def _get(self, name: str) -> pb.Vcenter:
        checks.text("name", name)
        return await self._workshop.catalog.run(lambda connection: vcenters.get(connection, name))


def _facts(vcenter: pb.Vcenter) -> dict[str, Any]:
    """For the audit log."""
    trust = vcenter.certificate_sha256.hex() or "ca"
    return {
        "address": f"{vcenter.host}:{vcenter.port}",
        "site": vcenter.site_name,
        "credential_id": vcenter.credential_id,
        "trust": trust,
    }


def _check_address(vcenter: pb.Vcenter) -> None:
    """Of a vCenter that is added or changed; a port that is not given becomes HTTPS's."""
    checks.text("vcenter.host", vcenter.host)
    vcenter.port = vcenter.port or _HTTPS
    if not 1 <= vcenter.port <= 65535:
        raise invalid("vcenter.port", "must be 1 to 65535")


def _check_trust(vcenter: pb.Vcenter) -> None:
    """How it is recognized: there must be something."""
    match vcenter.WhichOneof("trust"):
        case "ca_pem":
            try:
                # With nothing at all, Python would trust all the world.
                if not vcenter.ca_pem.strip():
                    raise ValueError("it is empty")
                ssl.create_default_context(cadata=vcenter.ca_pem)
            except (ssl.SSLError, ValueError, TypeError) as error:
                raise invalid("vcenter.ca_pem", f"holds no certificate in PEM format: {error}") from None
        case "certificate_sha256":
            if len(vcenter.certificate_sha256) != 32:
                raise invalid("vcenter.certificate_sha256", "must be 32 bytes")
        case _:
            raise invalid(
                "vcenter.trust",
                "is required: a CA or the certificate's SHA-256",
                remedy="There is no way to trust a vCenter unseen.",
            )
