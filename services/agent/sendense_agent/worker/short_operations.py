# SPDX-License-Identifier: Apache-2.0
"""Operations that end soon: listing VMs, looking at one, testing a login, what jobs left, resets."""

from __future__ import annotations

import logging
import os
from collections import defaultdict

from sendense.agent.v1 import agent_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense_agent.datapath.sources import try_the_way
from sendense_agent.vsphere import (
    check_machine,
    find_machine,
    folder,
    hub_snapshots,
    missing_privileges,
    virtual_machines,
)
from sendense_agent.worker.channel import Channel
from sendense_agent.worker.reading import datastore_source
from sendense_agent.worker.site import Site
from sendense_common import telemetry
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_PAGE = 100


async def list_virtual_machines(site: Site, channel: Channel, request: pb.ListVirtualMachinesRequest) -> None:
    """See AgentService."""
    async with site.session(request.vcenter, operation_pb2.OPERATION_INVENTORY) as session:
        with telemetry.span("list VMs"):
            machines = await virtual_machines(session)
        for start in range(0, max(1, len(machines)), _PAGE):
            await channel.send(
                pb.ListVirtualMachinesResponse(
                    vcenter_uuid=session.vcenter_uuid, virtual_machines=machines[start : start + _PAGE]
                )
            )


async def test_vcenter(site: Site, channel: Channel, request: pb.TestVcenterRequest) -> None:
    """See AgentService."""
    async with site.session(request.vcenter, operation_pb2.OPERATION_TEST) as session:
        # Disks are read by another program than the one that logs in, and it is stricter with names.
        files = datastore_source(session, folder(session))
        await try_the_way(files, run_dir=site.paths.run / "n", label=f"test-{os.getpid()}")
        await channel.send(
            pb.TestVcenterResponse(
                vcenter_uuid=session.vcenter_uuid,
                full_name=session.full_name,
                certificate_sha256=session.trusted.certificate_sha256,
                missing_privileges=await missing_privileges(session),
            )
        )


async def check_virtual_machine(site: Site, channel: Channel, request: pb.CheckVirtualMachineRequest) -> None:
    """See AgentService."""
    async with site.session(request.vcenter, operation_pb2.OPERATION_INVENTORY) as session:
        with telemetry.span("check VM"):
            findings = await check_machine(
                session,
                request.vm_instance_uuid,
                request.vm_name,
                hub_id=request.hub_id,
                limits=site.config.limits,
                vddk=bool(session.vddk),
            )
    await channel.send(pb.CheckVirtualMachineResponse(findings=findings))


async def reset_change_tracking(site: Site, channel: Channel, request: pb.ResetChangeTrackingRequest) -> None:
    """See AgentService."""
    async with site.session(request.vcenter, operation_pb2.OPERATION_CLEAN_UP) as session:
        with telemetry.span("reset change tracking"):
            machine = await find_machine(session, request.vm_instance_uuid, request.vm_name)
            log.warning("changed block tracking of VM %s is reset, as an operator ordered", machine.name)
            await machine.reset_changed_block_tracking(request.hub_id, request.reset_id)
    await channel.send(pb.ResetChangeTrackingResponse())


async def find_snapshots(site: Site, channel: Channel, request: pb.FindSnapshotsRequest) -> None:
    """See AgentService."""
    async with site.session(request.vcenter, operation_pb2.OPERATION_INVENTORY) as session:
        with telemetry.span("find snapshots"):
            found = await hub_snapshots(session, request.hub_id)
    await channel.send(pb.FindSnapshotsResponse(snapshots=found))


async def clean_up_snapshots(site: Site, channel: Channel, request: pb.CleanUpSnapshotsRequest) -> None:
    """See AgentService."""
    jobs_of: dict[str, set[str]] = defaultdict(set)
    for each in request.snapshots:
        jobs_of[each.vm_instance_uuid].add(each.job_id)
    answer = pb.CleanUpSnapshotsResponse()
    async with site.session(request.vcenter, operation_pb2.OPERATION_CLEAN_UP) as session:
        for instance_uuid, jobs in jobs_of.items():
            try:
                machine = await find_machine(session, instance_uuid, instance_uuid)
                for snapshot in await machine.own_snapshots(request.hub_id, jobs):
                    await snapshot.remove()
            except SendenseError as error:
                if error.reason != Reason.REASON_VM_NOT_FOUND:  # a VM that is gone has no snapshots
                    log.warning("cleaning up VM %s: %s", instance_uuid, error)
                    continue
            answer.cleaned_job_ids.extend(sorted(jobs))
    await channel.send(answer)
