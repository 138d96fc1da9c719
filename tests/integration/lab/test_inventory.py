# SPDX-License-Identifier: Apache-2.0
"""Reading the simulated vCenter's inventory."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl
from tests.integration.lab.kit import PC, disks, machine_of, take_snapshot

from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


def spec_of(
    instance: Any, kind: Any, paths: list[str], container: Any = None, *, recursive: bool = True
) -> Any:
    view = instance.content.viewManager.CreateContainerView(
        container or instance.content.rootFolder, [kind], recursive
    )
    into = PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[into])],
        propSet=[PC.PropertySpec(type=kind, pathSet=paths)],
    )


def pages(instance: Any, spec: Any, size: int | None) -> list[list[dict[str, Any]]]:
    collector = instance.content.propertyCollector
    found = []
    page = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=size))
    while page is not None:
        found.append([{each.name: each.val for each in item.propSet} for item in page.objects])
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
    return found


async def test_the_inventory_comes_in_pages_of_the_size_that_was_asked_for(
    lab: LabClient, instance: Any
) -> None:
    names = {f"page-{number}" for number in range(5)}
    for name in names:
        await lab.add_vm(name, [65536])
    spec = spec_of(instance, vim.VirtualMachine, ["name"])
    found = pages(instance, spec, 2)
    together = [each["name"] for page in found for each in page]
    assert all(len(page) == 2 for page in found[:-1])
    assert 1 <= len(found[-1]) <= 2
    assert len(together) == len(set(together))
    assert names <= set(together)
    assert len(pages(instance, spec, None)) == 1


async def test_the_server_may_make_pages_smaller(lab: LabClient, instance: Any) -> None:
    for number in range(3):
        await lab.add_vm(f"small-{number}", [65536])
    await lab.command("set", objects_per_page=1)
    found = pages(instance, spec_of(instance, vim.VirtualMachine, ["name"]), 100)
    assert len(found) >= 3
    assert all(len(page) == 1 for page in found)


async def test_a_page_is_given_once(lab: LabClient, instance: Any) -> None:
    for number in range(2):
        await lab.add_vm(f"once-{number}", [65536])
    collector = instance.content.propertyCollector
    page = collector.RetrievePropertiesEx(
        [spec_of(instance, vim.VirtualMachine, ["name"])], PC.RetrieveOptions(maxObjects=1)
    )
    collector.ContinueRetrievePropertiesEx(page.token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector.ContinueRetrievePropertiesEx(page.token)


async def test_a_view_holds_what_is_below_its_container_and_not_itself(lab: LabClient, instance: Any) -> None:
    await lab.add_vm("below", [65536])
    root = instance.content.rootFolder
    (datacenter,) = root.childEntity
    (folders,) = pages(instance, spec_of(instance, vim.Folder, ["name"]), None)
    assert sorted(each["name"] for each in folders) == ["datastore", "host", "network", "vm"]
    assert pages(instance, spec_of(instance, vim.VirtualMachine, ["name"], recursive=False), None) == []
    assert pages(instance, spec_of(instance, vim.VirtualMachine, ["name"], datacenter.hostFolder), None) == []
    (found,) = pages(instance, spec_of(instance, vim.VirtualMachine, ["name"], datacenter.vmFolder), None)
    assert "below" in {each["name"] for each in found}


async def test_what_has_no_value_is_missing_and_what_does_not_exist_is_a_fault(
    lab: LabClient, instance: Any
) -> None:
    machine = machine_of(instance, await lab.add_vm("properties", [65536]))
    spec = PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=machine)],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name", "snapshot", "config.keyId"])],
    )
    assert pages(instance, spec, None) == [[{"name": "properties"}]]
    spec.propSet[0].pathSet = ["nonsense"]
    with pytest.raises(vmodl.query.InvalidProperty):
        pages(instance, spec, None)


async def test_what_is_gone_is_not_found(lab: LabClient, instance: Any) -> None:
    machine = machine_of(instance, await lab.add_vm("gone", [65536]))
    snapshot = take_snapshot(machine)
    await lab.command("remove_snapshots", vm="gone")
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        assert snapshot.config


async def test_rule_21_two_vms_of_one_name_are_told_apart_by_instance_uuid(
    lab: LabClient, instance: Any
) -> None:
    first, second = await lab.add_vm("twin", [65536]), await lab.add_vm("twin", [131072])
    assert first.instance_uuid != second.instance_uuid
    assert [disk.capacityInBytes for disk in disks(machine_of(instance, first))] == [65536]
    assert [disk.capacityInBytes for disk in disks(machine_of(instance, second))] == [131072]
    files = [disks(machine_of(instance, each))[0].backing.fileName for each in (first, second)]
    assert files[0] != files[1]
    search = instance.content.searchIndex
    assert search.FindByUuid(None, machine_of(instance, first).config.uuid, True, False)._moId == first.moref
    assert search.FindByUuid(None, "00000000-0000-0000-0000-000000000000", True, True) is None


async def test_names_are_escaped_as_vspheres_api_does(lab: LabClient, instance: Any) -> None:
    machine = machine_of(instance, await lab.add_vm("50% of a/b\\c +#ä", [65536]))
    assert machine.name == "50%25 of a%2fb%5cc +#ä"
    assert disks(machine)[0].backing.fileName == "[datastore1] 50% of a_b\\c +#ä/50% of a_b\\c +#ä.vmdk"


async def test_rule_05_two_disks_may_have_one_unit_number(lab: LabClient, instance: Any) -> None:
    vm = await lab.add_vm("units", [{"capacity_bytes": 65536, "unit_number": 0}] * 2)
    found = disks(machine_of(instance, vm))
    assert [disk.unitNumber for disk in found] == [0, 0]
    assert [disk.key for disk in found] == [2000, 2001] == vm.disks
    assert len({disk.diskObjectId for disk in found}) == len({disk.backing.uuid for disk in found}) == 2


async def test_rule_22_sizes_are_in_bytes(lab: LabClient, instance: Any) -> None:
    (disk,) = disks(machine_of(instance, await lab.add_vm("odd", [5 * 65536 + 512])))
    assert disk.capacityInBytes == 5 * 65536 + 512


async def test_a_template_says_so(lab: LabClient, instance: Any) -> None:
    machine = machine_of(instance, await lab.add_vm("template", [65536]))
    assert not machine.config.template
    await lab.command("mark_template", vm="template", template=True)
    assert machine.config.template
    assert machine.summary.config.template


async def test_a_client_can_wait_for_changes(lab: LabClient, instance: Any) -> None:
    machine = machine_of(instance, await lab.add_vm("waited-for", [65536]))
    collector = instance.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(
        PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=machine)],
            propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["snapshot"])],
        ),
        False,
    )
    first = collector.WaitForUpdatesEx("", PC.WaitOptions(maxWaitSeconds=10))
    assert collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=0)) is None
    snapshot = take_snapshot(machine)
    second = collector.WaitForUpdatesEx(first.version, PC.WaitOptions(maxWaitSeconds=10))
    (change,) = second.filterSet[0].objectSet[0].changeSet
    assert change.val.currentSnapshot == snapshot
    collector.DestroyPropertyCollector()
