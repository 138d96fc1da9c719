# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pyVmomi import vim

from sendense.agent.v1.agent_service_pb2 import SEVERITY_ERROR, SEVERITY_OK, SEVERITY_WARNING, MachineFinding
from sendense_agent.domain.limits import GIB, Limits
from sendense_agent.vsphere.checks import Facts, judge
from sendense_agent.vsphere.disks import VirtualDisk
from sendense_agent.vsphere.machine import describe
from sendense_agent.vsphere.places import Space

pytestmark = pytest.mark.unit

HEALTHY = {
    "config.version": "vmx-20",
    "config.changeTrackingEnabled": True,
    "config.hardware.device": [],
    "capability.changeTrackingSupported": True,
    "guest.toolsRunningStatus": "guestToolsRunning",
    "runtime.connectionState": "connected",
    "runtime.consolidationNeeded": False,
    "runtime.powerState": "poweredOn",
}


def disk(key: int = 2000, unprotectable: str = "", vddk: str = "") -> VirtualDisk:
    return VirtualDisk(key, "Hard disk 1", 3 * GIB, "1-2000", "uuid", "", "[d] a.vmdk", unprotectable, vddk)


def snapshots(*descriptions: str) -> Any:
    """A chain of them, each named by its number."""
    child: list[Any] = []
    for number, each in reversed(list(enumerate(descriptions))):
        child = [SimpleNamespace(name=f"s{number}", description=each, childSnapshotList=child)]
    return SimpleNamespace(rootSnapshotList=child)


def found(
    name: str,
    disks: list[VirtualDisk] | None = None,
    spaces: list[Space] | None = None,
    missing: list[str] | None = None,
    *,
    vddk: bool = False,
    unknown: str = "",
    **changed: Any,
) -> MachineFinding:
    """What is said about one thing of a VM that is otherwise healthy."""
    properties = {**HEALTHY, **{key.replace("__", "."): value for key, value in changed.items()}}
    facts = Facts(properties, [disk()] if disks is None else disks, missing or [], spaces or [], unknown)
    (one,) = [each for each in judge(facts, hub_id="hub-1", limits=Limits(), vddk=vddk) if each.name == name]
    return one


def test_a_healthy_vm_has_nothing_to_do():
    facts = Facts(HEALTHY, [disk()], [], [Space("ds1", 900 * GIB, 1000 * GIB, accessible=True)])
    every = list(judge(facts, hub_id="hub-1", limits=Limits(), vddk=False))
    assert {each.severity for each in every} == {SEVERITY_OK}
    assert [each.remedy for each in every if each.remedy] == []
    assert [each.name for each in every] == [
        "power", "privileges", "changed_block_tracking", "snapshots", "consolidation", "disk.2000",
        "virtual_tpm", "hardware_version", "tools", "quiesce", "datastore.ds1",
    ]  # fmt: skip


def test_missing_privileges_are_errors_with_their_names():
    one = found("privileges", missing=["Datastore.Browse on datastore ds1"])
    assert one.severity == SEVERITY_ERROR
    assert "Datastore.Browse on datastore ds1" in one.finding
    assert one.remedy


def test_privileges_that_cannot_be_asked_for_are_not_taken_for_there():
    one = found("privileges", unknown="no such method")
    assert (one.severity, "no such method" in one.finding) == (SEVERITY_WARNING, True)


@pytest.mark.parametrize(
    ("changed", "severity", "words"),
    [
        ({}, SEVERITY_OK, "is on"),
        ({"config__changeTrackingEnabled": False}, SEVERITY_OK, "the first backup turns it on"),
        (
            {"config__changeTrackingEnabled": False, "runtime__powerState": "poweredOff"},
            SEVERITY_OK,
            "when the VM is switched on",
        ),
        (
            {"config__changeTrackingEnabled": False, "snapshot": snapshots("x")},
            SEVERITY_WARNING,
            "cannot be turned on while the VM has snapshots",
        ),
        (
            {"config__changeTrackingEnabled": False, "capability__changeTrackingSupported": False},
            SEVERITY_WARNING,
            "cannot have it",
        ),
    ],
)
def test_rule_02_whether_change_tracking_is_on_or_can_be_turned_on(
    changed: dict[str, Any], severity: int, words: str
):
    one = found("changed_block_tracking", **changed)
    assert one.severity == severity
    assert words in one.finding


def test_rule_17_our_snapshots_are_told_from_those_of_others_and_of_other_hubs():
    ours, another = describe("hub-1", "job"), describe("hub-2", "job")
    one = found("snapshots", snapshot=snapshots(ours, "before the update", another))
    assert one.severity == SEVERITY_WARNING
    assert "1 of this hub (s0)" in one.finding
    assert "2 of others (s1, s2)" in one.finding
    assert one.remedy


@pytest.mark.parametrize("reason", ["independent", "physical_rdm", "shared_bus", "unsupported_backing"])
def test_rule_01_each_disk_that_is_left_out_is_named_with_its_reason(reason: str):
    one = found("disk.2001", [disk(), disk(2001, reason)])
    assert one.severity == SEVERITY_WARNING
    assert reason.replace("_", " ") in one.finding
    assert one.remedy


def test_a_vm_of_which_nothing_can_be_protected_is_an_error():
    assert found("disks", [disk(2001, "independent")]).severity == SEVERITY_ERROR
    assert found("disks", []).severity == SEVERITY_ERROR


def test_rule_25_a_disk_that_needs_vddk_is_an_error_only_without_it():
    one = found("disk.2000", [disk(vddk="it is encrypted")])
    assert (one.severity, "it is encrypted" in one.finding) == (SEVERITY_ERROR, True)
    assert found("disk.2000", [disk(vddk="it is encrypted")], vddk=True).severity == SEVERITY_OK


@pytest.mark.parametrize(
    ("name", "changed", "severity", "words"),
    [
        ("power", {"runtime__connectionState": "orphaned"}, SEVERITY_ERROR, "orphaned"),
        ("power", {"runtime__powerState": "suspended"}, SEVERITY_OK, "suspended"),
        ("consolidation", {"runtime__consolidationNeeded": True}, SEVERITY_ERROR, "need it"),
        (
            "virtual_tpm",
            {"config__hardware__device": [vim.vm.device.VirtualTPM(key=11000)]},
            SEVERITY_WARNING,
            "key provider",
        ),
        ("hardware_version", {"config__version": "vmx-04"}, SEVERITY_WARNING, "too old"),
        ("tools", {"guest__toolsRunningStatus": "guestToolsNotRunning"}, SEVERITY_WARNING, "do not run"),
        (
            "tools",
            {
                "guest__toolsRunningStatus": "guestToolsNotRunning",
                "guest__toolsVersionStatus2": "guestToolsNotInstalled",
            },
            SEVERITY_WARNING,
            "not installed",
        ),
        ("quiesce", {"guest__toolsRunningStatus": "guestToolsNotRunning"}, SEVERITY_WARNING, "not possible"),
        (
            "quiesce",
            {"guest__toolsRunningStatus": "guestToolsNotRunning", "runtime__powerState": "poweredOff"},
            SEVERITY_OK,
            "no guest runs",
        ),
    ],
)
def test_what_else_is_looked_at(name: str, changed: dict[str, Any], severity: int, words: str):
    one = found(name, **changed)
    assert one.severity == severity
    assert words in one.finding
    assert bool(one.remedy) == (severity != SEVERITY_OK)


@pytest.mark.parametrize(
    ("free", "capacity", "accessible", "severity"),
    [
        (51 * GIB, 1000 * GIB, True, SEVERITY_WARNING),
        (49 * GIB, 1000 * GIB, True, SEVERITY_ERROR),
        (9 * GIB, 40 * GIB, True, SEVERITY_ERROR),
        (11 * GIB, 40 * GIB, True, SEVERITY_WARNING),
        (101 * GIB, 1000 * GIB, True, SEVERITY_OK),
        (900 * GIB, 1000 * GIB, False, SEVERITY_ERROR),
    ],
)
def test_free_space_is_held_against_the_floor(free: int, capacity: int, accessible: bool, severity: int):
    one = found("datastore.ds1", spaces=[Space("ds1", free, capacity, accessible)])
    assert one.severity == severity
