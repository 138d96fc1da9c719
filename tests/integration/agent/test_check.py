# SPDX-License-Identifier: Apache-2.0
"""Looking at a VM before a backup: what is found, and that nothing was touched."""

from __future__ import annotations

import uuid

import grpc
import pytest
from tests.integration.agent.kit import WITHIN_S
from tests.integration.agent.site_kit import MIB, Site

from sendense.agent.v1 import agent_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_agent.vsphere.machine import describe
from sendense_common.errors import SendenseError
from sendense_lab.client import LabMachine

pytestmark = pytest.mark.integration


async def check(site: Site, vm: LabMachine, **changed: str) -> dict[str, pb.MachineFinding]:
    request = pb.CheckVirtualMachineRequest(
        vcenter=await site.access(Operation.OPERATION_INVENTORY),
        vm_instance_uuid=changed.get("vm_instance_uuid", vm.instance_uuid),
        vm_name=vm.name,
        hub_id="hub-1",
    )
    answer = await site.stub.CheckVirtualMachine(request, timeout=60)
    return {each.name: each for each in answer.findings}


async def test_a_vm_without_trouble_is_looked_at_and_not_touched(site: Site):
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [4 * MIB])
    found = await check(site, vm)
    assert {each.severity for each in found.values()} == {pb.SEVERITY_OK}, found
    assert f"disk.{vm.disks[0]}" in found
    assert "datastore.datastore1" in found
    counted = await site.counters()
    assert [name for name in counted if name.startswith("call ") and name.endswith("_Task")] == []
    assert counted["logins"] == 1
    await site.nothing_left(vm)


async def test_all_that_is_wrong_with_a_vm_is_found_at_once(site: Site):
    protected, left_out = 4 * MIB, {"capacity_bytes": MIB, "disk_mode": "independent_persistent"}
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [protected, left_out])
    await site.lab.command("take_snapshot", vm=vm.name, name="before the update")
    await site.lab.command("set_machine", vm=vm.name, tools_running=False, virtual_tpm=True)
    await site.lab.command("set_consolidation_needed", vm=vm.name, needed=True)
    await site.lab.command(
        "set", missing_privileges=["VirtualMachine.State.RemoveSnapshot", "Datastore.Browse"]
    )
    try:
        found = await check(site, vm)
    finally:
        await site.lab.command("set", missing_privileges=[])
    errors = {name for name, each in found.items() if each.severity == pb.SEVERITY_ERROR}
    assert errors == {"privileges", "consolidation", f"disk.{vm.disks[0]}"}
    warnings = {name for name, each in found.items() if each.severity == pb.SEVERITY_WARNING}
    tracking = "changed_block_tracking"
    assert warnings == {tracking, "snapshots", f"disk.{vm.disks[1]}", "virtual_tpm", "tools", "quiesce"}
    privileges = found["privileges"].finding
    assert "VirtualMachine.State.RemoveSnapshot on the VM" in privileges
    assert "Datastore.Browse on datastore datastore1" in privileges
    assert "VirtualMachine.State.CreateSnapshot" not in privileges
    assert "before the update" in found["snapshots"].finding
    assert "independent" in found[f"disk.{vm.disks[1]}"].finding
    assert all(each.remedy for name, each in found.items() if name in errors | warnings)


async def test_a_snapshot_of_a_running_job_is_known_as_ours(site: Site):
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [4 * MIB])
    backup = await site.begin(vm)
    await backup.until_plan()
    assert await site.snapshots(vm) == [describe("hub-1", backup.start.job_id)]
    found = await check(site, vm)
    assert "1 of this hub" in found["snapshots"].finding
    assert "others" not in found["snapshots"].finding
    await backup.cancel()
    await backup.failed()
    await site.nothing_left(vm)


async def test_a_vm_that_is_gone_is_said_to_be(site: Site):
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [4 * MIB])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(site, vm, vm_instance_uuid=str(uuid.uuid4()))
    assert SendenseError.from_rpc(caught.value).reason == Reason.REASON_VM_NOT_FOUND


async def lacks(site: Site) -> list[pb.MissingPrivilege]:
    request = pb.TestVcenterRequest(vcenter=await site.access(Operation.OPERATION_TEST))
    return list((await site.stub.TestVcenter(request, timeout=WITHIN_S)).missing_privileges)


async def test_a_test_of_the_vcenter_names_every_privilege_that_backups_lack_and_where(site: Site):
    vms = [await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [4 * MIB]) for _ in range(2)]
    assert await lacks(site) == []
    await site.lab.command(
        "set",
        missing_privileges=["VirtualMachine.State.RemoveSnapshot", "Datastore.Browse"],
        missing_privileges_on={vms[0].name: ["VirtualMachine.State.CreateSnapshot"]},
    )
    try:
        missing = {each.privilege: each for each in await lacks(site)}
    finally:
        await site.lab.command("set", missing_privileges=[], missing_privileges_on={})
    assert set(missing) == {
        "VirtualMachine.State.CreateSnapshot",
        "VirtualMachine.State.RemoveSnapshot",
        "Datastore.Browse",
    }
    some = missing["VirtualMachine.State.CreateSnapshot"]
    assert some.where.startswith("1 of ")
    assert some.where.endswith(f"VMs ({vms[0].name})")
    assert not some.everywhere
    assert missing["VirtualMachine.State.RemoveSnapshot"].everywhere
    assert missing["Datastore.Browse"].where == "datastore1"
