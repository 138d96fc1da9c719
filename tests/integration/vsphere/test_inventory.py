# SPDX-License-Identifier: Apache-2.0
"""Listing VMs."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.vsphere.kit import GRANULE, calls, tracked

from sendense.agent.v1.agent_service_pb2 import VirtualMachine
from sendense_agent.vsphere import Session, virtual_machines
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def listed(session: Session, prefix: str) -> dict[str, VirtualMachine]:
    """By name, those that one test made."""
    return {each.name: each for each in await virtual_machines(session) if each.name.startswith(prefix)}


async def test_all_vms_are_listed_by_name_over_many_pages(lab: LabClient, session: Session) -> None:
    names = [f"page-{number:02d}" for number in range(8)]
    for name in reversed(names):
        await lab.add_vm(name, [GRANULE])
    await lab.command("set", objects_per_page=3)
    before = await calls(lab, "ContinueRetrievePropertiesEx")
    assert list(await listed(session, "page-")) == names
    assert await calls(lab, "ContinueRetrievePropertiesEx") >= before + 2


async def test_rule_11_a_session_that_ends_between_two_pages_costs_no_vm_and_doubles_none(
    lab: LabClient, session: Session
) -> None:
    for number in range(4):
        await lab.add_vm(f"expiring-{number}", [GRANULE])
    await lab.command("set", objects_per_page=2)
    await lab.inject_fault("ContinueRetrievePropertiesEx", "vim.fault.NotAuthenticated")
    found = [each.name for each in await virtual_machines(session) if each.name.startswith("expiring-")]
    assert found == [f"expiring-{number}" for number in range(4)]


async def test_a_vm_is_told_with_its_place_and_disks(lab: LabClient, session: Session) -> None:
    independent = {"capacity_bytes": 1024, "disk_mode": "independent_persistent"}
    vm, _ = await tracked(lab, session, "facts", 5 * GRANULE + 512, independent)
    found = (await listed(session, "facts"))["facts"]
    assert (found.instance_uuid, found.moref) == (vm.instance_uuid, vm.moref)
    assert (found.folder, found.host) == ("/DC0/vm", "esx01.lab.example")
    assert (found.power_state, found.guest) == ("poweredOn", "Debian GNU/Linux 12 (64-bit)")
    assert found.changed_block_tracking
    assert [(disk.key, disk.label, disk.capacity_bytes) for disk in found.disks] == [
        (2000, "Hard disk 1", 5 * GRANULE + 512),
        (2001, "Hard disk 2", 1024),
    ]
    assert [disk.unprotectable_reason for disk in found.disks] == ["", "independent"]
    assert all(disk.disk_object_id and disk.backing_uuid for disk in found.disks)


async def test_templates_are_not_listed(lab: LabClient, session: Session) -> None:
    for name in ("mold-1", "mold-2"):
        await lab.add_vm(name, [GRANULE])
    await lab.command("mark_template", vm="mold-1", template=True)
    assert list(await listed(session, "mold-")) == ["mold-2"]


async def test_rule_21_two_vms_of_one_name_are_both_listed(lab: LabClient, session: Session) -> None:
    made = {(await lab.add_vm("twin", [GRANULE])).instance_uuid for _ in range(2)}
    found = [each for each in await virtual_machines(session) if each.name == "twin"]
    assert {each.instance_uuid for each in found} == made


@pytest.mark.parametrize("name", ["a+b c", "50% off", "a/b\\c", "%2f", "#1", "ümläut 磁盘", "web-disk-1"])
async def test_ff19_a_vm_may_have_any_name(lab: LabClient, session: Session, name: str) -> None:
    vm = await lab.add_vm(name, [GRANULE])
    found = [each.name for each in await virtual_machines(session) if each.instance_uuid == vm.instance_uuid]
    assert found == [name]


async def test_a_vm_without_disks_and_one_that_is_off_are_listed(lab: LabClient, session: Session) -> None:
    await lab.add_vm("bare", [])
    await lab.command("set_power", vm="bare", on=False)
    found = (await listed(session, "bare"))["bare"]
    assert (list(found.disks), found.power_state) == ([], "poweredOff")


async def test_listing_leaves_no_view_behind(lab: LabClient, session: Session) -> None:
    made, gone = await calls(lab, "CreateContainerView"), await calls(lab, "DestroyView")
    await asyncio.gather(virtual_machines(session), virtual_machines(session))
    assert await calls(lab, "CreateContainerView") - made == await calls(lab, "DestroyView") - gone > 0
