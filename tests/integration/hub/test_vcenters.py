# SPDX-License-Identifier: Apache-2.0
"""The hub's vCenters: tested, changed, and listed although one of them cannot be asked."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from tests.integration.hub.kit import Api, api_of, world
from tests.integration.hub.scripted_agent import MACHINE, MACHINE_NAME, VCENTER, backup, plan_of
from tests.integration.hub.test_backups import FIRST

from sendense.agent.v1 import agent_service_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2, point_service_pb2
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration


@pytest.fixture
async def api(short_tmp: Path):
    async with world(short_tmp) as made, api_of(made) as running:
        await running.register()
        yield running


async def refused(call) -> SendenseError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return SendenseError.from_rpc(caught.value)


async def test_a_vcenter_that_cannot_be_asked_does_not_hide_the_others(api: Api):
    service = VcenterServiceStub(api.channel)
    gone = pb.Vcenter(name="gone", host="gone.example", certificate_sha256=bytes(32), credential_id="other")
    await service.AddVcenter(pb.AddVcenterRequest(vcenter=gone))
    api.world.agent.unreachable_hosts.add("gone.example")
    answer = await service.ListVirtualMachines(pb.ListVirtualMachinesRequest())
    assert [(each.vcenter_name, each.name) for each in answer.virtual_machines] == [(VCENTER, MACHINE_NAME)]
    (failure,) = answer.failures
    assert (failure.vcenter_name, failure.failure.reason) == ("gone", Reason.REASON_VCENTER_UNREACHABLE)
    alone = await refused(service.ListVirtualMachines(pb.ListVirtualMachinesRequest(vcenter_name="gone")))
    assert alone.reason == Reason.REASON_VCENTER_UNREACHABLE


async def test_a_test_fails_for_privileges_that_are_missing_everywhere_and_names_all(api: Api):
    service = VcenterServiceStub(api.channel)
    some = agent.MissingPrivilege(privilege="A.B", where="1 of 3 VMs (web)")
    api.world.agent.missing_privileges = [some]
    answer = await service.TestVcenter(pb.TestVcenterRequest(name=VCENTER))
    assert list(answer.missing_privileges) == ["A.B on 1 of 3 VMs (web)"]
    api.world.agent.missing_privileges += [
        agent.MissingPrivilege(privilege="C.D", where="all 3 VMs", everywhere=True)
    ]
    error = await refused(service.TestVcenter(pb.TestVcenterRequest(name=VCENTER)))
    assert error.reason == Reason.REASON_VCENTER_NO_PERMISSION
    assert "A.B on 1 of 3 VMs (web), C.D on all 3 VMs" in error.message
    assert error.metadata["privileges"] == "A.B, C.D"


async def test_address_and_trust_of_a_vcenter_are_changed_and_nothing_else(api: Api):
    service = VcenterServiceStub(api.channel)
    (before,) = (await service.ListVcenters(pb.ListVcentersRequest())).vcenters
    wanted = pb.Vcenter(
        name=VCENTER, host="new.example", certificate_sha256=bytes([7]) * 32, credential_id="another"
    )
    after = (await service.ChangeVcenter(pb.ChangeVcenterRequest(vcenter=wanted))).vcenter
    before.host, before.certificate_sha256 = "new.example", bytes([7]) * 32
    assert after == before
    # The trust stays when there is none in the request.
    wanted.host = "newer.example"
    wanted.ClearField("trust")
    after = (await service.ChangeVcenter(pb.ChangeVcenterRequest(vcenter=wanted))).vcenter
    before.host = "newer.example"
    assert after == before
    wanted.name, wanted.certificate_sha256 = "nobody", bytes(32)
    unknown = await refused(service.ChangeVcenter(pb.ChangeVcenterRequest(vcenter=wanted)))
    assert unknown.reason == Reason.REASON_VCENTER_NOT_FOUND


async def test_points_of_a_vm_that_never_was_are_not_found_and_of_one_that_is_or_was_may_be_none(api: Api):
    async def listed(vm: str, vcenter: str = "") -> list[str]:
        request = point_service_pb2.ListPointsRequest(vm=vm, vcenter_name=vcenter)
        return [each.point_id for each in (await api.points.ListPoints(request)).points]

    async def refusal(vm: str, vcenter: str = "") -> Reason.ValueType:
        return (await refused(listed(vm, vcenter))).reason

    # The hub has never seen it. Who may look at points may not have it log in at vCenters: nobody is asked.
    for name in (MACHINE_NAME, MACHINE, "vm-1"):
        for vcenter in ("", VCENTER):
            unseen = await refused(listed(name, vcenter))
            assert unseen.reason == Reason.REASON_VM_NOT_FOUND
            assert "`sendense vm list`" in unseen.remedy
    assert api.world.agent.listings_count == 0
    await VcenterServiceStub(api.channel).ListVirtualMachines(pb.ListVirtualMachinesRequest())
    assert api.world.agent.listings_count == 1
    for name in (MACHINE_NAME, MACHINE, "vm-1"):
        assert await listed(name) == await listed(name, VCENTER) == []
    assert await refusal("nobody") == await refusal("nobody", VCENTER) == Reason.REASON_VM_NOT_FOUND
    assert await refusal(MACHINE_NAME, "nowhere") == Reason.REASON_VCENTER_NOT_FOUND
    assert api.world.agent.listings_count == 1

    api.world.agent.script = backup(FIRST, plan_of())
    job = await api.ended((await api.start_backup()).job_id)
    assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job.failure
    for name in (MACHINE_NAME, MACHINE, "vm-1"):
        assert await listed(name) == await listed(name, VCENTER) == [job.point_id]
    # Whoever it was, nobody asks for it any more, and its points go: it was there all the same.
    await VcenterServiceStub(api.channel).RemoveVcenter(pb.RemoveVcenterRequest(name=VCENTER))
    assert await listed(MACHINE_NAME) == [job.point_id]
    await api.points.DeletePoint(point_service_pb2.DeletePointRequest(point_id=job.point_id))
    assert await listed(MACHINE_NAME) == await listed(MACHINE, VCENTER) == []
    assert await refusal("nobody") == Reason.REASON_VM_NOT_FOUND


async def test_a_vm_is_known_from_its_first_backup_on_also_if_that_made_no_point(api: Api):
    request = point_service_pb2.ListPointsRequest(vm=MACHINE_NAME)
    assert (await refused(api.points.ListPoints(request))).reason == Reason.REASON_VM_NOT_FOUND
    api.world.agent.script = lambda job: job.fail(Reason.REASON_VM_NOT_FOUND)
    job = await api.ended((await api.start_backup()).job_id)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert list((await api.points.ListPoints(request)).points) == []
