# SPDX-License-Identifier: Apache-2.0
"""Our snapshot: whether it is there, and its end."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.vsphere.kit import GRANULE, HUB, JOB, calls, eventually, fails, freeze, tracked, wire
from tests.integration.vsphere.kit import opened as open_lab

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import Session, find_machine, tasks
from sendense_agent.vsphere import session as session_module
from sendense_agent.vsphere import snapshot as module
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


async def begun(lab: LabClient, method: str) -> None:
    """Waits until a task of that method runs."""

    async def runs() -> bool:
        return bool((await lab.command("running_tasks")).count(method))

    await eventually(runs, f"{method} runs")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMOVE_AGAIN_AFTER_S", (0.01, 0.01))
    monkeypatch.setattr(tasks, "_BUSY_WAIT_S", 0.01)


async def test_rule_10_whether_it_still_exists_is_asked_of_vsphere(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "exists", GRANULE)
    first, second = await freeze(machine), await freeze(machine)
    assert (await first.exists(), await second.exists()) == (True, True)
    await second.remove()
    assert (await first.exists(), await second.exists()) == (True, False)
    await lab.command("remove_snapshots", vm="exists")
    assert not await first.exists()
    await lab.command("take_snapshot", vm="exists", name=f"sendense-{JOB[:8]}")
    assert not await first.exists()


async def test_rule_15_the_snapshot_holds_all_disks_at_once(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "all", GRANULE, 3 * GRANULE + 512)
    snapshot = await freeze(machine)
    assert [(disk.key, disk.capacity_bytes) for disk in snapshot.disks] == [
        (2000, GRANULE),
        (2001, 3 * GRANULE + 512),
    ]
    assert len(await lab.snapshots("all")) == 1


async def test_rule_16_removing_ends_when_the_deltas_are_merged(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "merged", GRANULE)
    snapshot = await freeze(machine)
    await lab.guest_write("merged", 2000, 0, b"meanwhile")
    await lab.command("delay_task", method="RemoveSnapshot_Task", seconds=60)
    removing = asyncio.create_task(snapshot.remove())
    await begun(lab, "RemoveSnapshot_Task")
    assert await snapshot.exists()
    assert not removing.done()
    await lab.command("delay_task", method="RemoveSnapshot_Task", seconds=0)
    await removing
    assert (await lab.command("state", vm="merged"))["deltas"] == []
    assert await lab.guest_read("merged", 2000, 0, 9) == b"meanwhile"


async def test_rule_17_removing_twice_is_removing_once(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "twice", GRANULE)
    snapshot = await freeze(machine)
    await lab.command("take_snapshot", vm="twice", name="somebody's")
    await snapshot.remove()
    await snapshot.remove()
    assert [each["name"] for each in await lab.snapshots("twice")] == ["somebody's"]


async def test_rule_17_a_removal_that_fails_is_tried_again(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "again", GRANULE)
    snapshot = await freeze(machine)
    await lab.inject_fault("RemoveSnapshot_Task", "vim.fault.TaskInProgress", times=2)
    await lab.inject_fault("task RemoveSnapshot_Task", "vim.fault.FileLocked")
    await lab.inject_fault("task RemoveSnapshot_Task", "vmodl.fault.SystemError", at_call=2)
    await snapshot.remove()
    assert await lab.snapshots("again") == []


async def test_rule_17_what_cannot_be_removed_is_said_after_three_tries(
    lab: LabClient, session: Session
) -> None:
    _, machine = await tracked(lab, session, "stuck", GRANULE)
    snapshot = await freeze(machine)
    await lab.inject_fault("task RemoveSnapshot_Task", "vim.fault.FileLocked", message="locked", times=100)
    before = await calls(lab, "RemoveSnapshot_Task")
    with fails(Reason.REASON_VSPHERE_FAULT, "removing the snapshot of VM stuck: .*FileLocked: locked"):
        await snapshot.remove()
    assert await calls(lab, "RemoveSnapshot_Task") == before + 3
    assert await snapshot.exists()


async def test_rule_17_a_missing_privilege_is_not_tried_again(lab: LabClient, session: Session) -> None:
    _, machine = await tracked(lab, session, "forbidden", GRANULE)
    snapshot = await freeze(machine)
    before = await calls(lab, "RemoveSnapshot_Task")
    await lab.inject_fault("RemoveSnapshot_Task", "vim.fault.NoPermission")
    with fails(Reason.REASON_VCENTER_NO_PERMISSION):
        await snapshot.remove()
    assert await calls(lab, "RemoveSnapshot_Task") == before + 1


async def test_rule_16_files_that_vsphere_could_not_merge_are_said(
    lab: LabClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONSOLIDATED_WITHIN_S", 0.0)
    _, machine = await tracked(lab, session, "unmerged", GRANULE)
    snapshot = await freeze(machine)
    await lab.command("set_consolidation_needed", vm="unmerged", needed=True)
    with fails(Reason.REASON_VSPHERE_FAULT, "could not merge") as caught:
        await snapshot.remove()
    assert "Consolidate" in caught.value.remedy
    assert not await snapshot.exists()


async def test_rule_11_a_session_that_ends_while_it_is_removed_costs_nothing(
    lab: LabClient, session: Session
) -> None:
    _, machine = await tracked(lab, session, "session-end", GRANULE)
    snapshot = await freeze(machine)
    await lab.command("expire_sessions")
    await snapshot.remove()
    assert await lab.snapshots("session-end") == []


async def test_rule_17_a_connection_that_breaks_while_a_snapshot_is_removed_costs_nothing(
    lab: LabClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_READ_AGAIN_AFTER_S", (0.01, 0.01))
    async with wire(lab) as line, open_lab(lab, port=line.port) as session:
        _, machine = await tracked(lab, session, "cut", GRANULE)
        snapshot = await freeze(machine)
        await lab.command("delay_task", method="RemoveSnapshot_Task", seconds=60)
        removing = asyncio.create_task(snapshot.remove())
        await begun(lab, "RemoveSnapshot_Task")
        line.cut()  # before the call is answered, or while its task is asked for
        await lab.command("delay_task", method="RemoveSnapshot_Task", seconds=0)
        await removing
    assert await lab.snapshots("cut") == []


async def test_a_snapshot_without_disks_is_no_snapshot(lab: LabClient, session: Session) -> None:
    vm = await lab.add_vm("shape", [GRANULE])
    machine = await find_machine(session, vm.instance_uuid, vm.name)
    snapshot = await freeze(machine)
    reference = session.reference(type(machine._reference), "vm-0")
    broken = module.Snapshot(session, machine._reference, reference, "shape")
    with fails(Reason.REASON_SNAPSHOT_LOST, "ManagedObjectNotFound"):
        await broken.load()
    assert [each.moref for each in await machine.own_snapshots(HUB, {JOB})] == [snapshot.moref]
