# SPDX-License-Identifier: Apache-2.0
"""The simulated vCenter seen from outside: by pyvmomi alone, and by plain HTTPS."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections.abc import Iterator
from typing import Any

from pyVmomi import SoapStubAdapter, vim, vmodl

from sendense_lab.client import LabClient, LabMachine

USERNAME, PASSWORD = "administrator@vsphere.local", "correct horse"
PC = vmodl.query.PropertyCollector
GRANULE = 65536
SETTINGS = {
    "areas_per_page": 2000,
    "window_bytes": 0,
    "used_areas": True,
    "areas_wrong": "",
    "quiesce_fails": False,
    "datastore_type": "VMFS",
    "objects_per_page": 100,
}
"""What a lab begins with."""


async def reset(lab: LabClient) -> None:
    """As it was: several tests share one lab."""
    await lab.command("set", **SETTINGS)
    await lab.command("clear_faults")
    for method in ("CreateSnapshot_Task", "RemoveSnapshot_Task", "ReconfigVM_Task"):
        await lab.command("delay_task", method=method, seconds=0)


def trust(lab: LabClient) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(lab.ca_file))


@contextlib.contextmanager
def connected(lab: LabClient, username: str = USERNAME, password: str = PASSWORD) -> Iterator[Any]:
    """A ServiceInstance of a client that knows nothing of ours."""
    stub = SoapStubAdapter(host=lab.host, port=lab.port, version="vim.version.v7_0", sslContext=trust(lab))
    instance: Any = vim.ServiceInstance("ServiceInstance", stub)
    try:
        instance.content.sessionManager.Login(username, password, None)
        yield instance
        with contextlib.suppress(vim.fault.NotAuthenticated):
            instance.content.sessionManager.Logout()
    finally:
        stub.DropConnections()


def machine_of(instance: Any, machine: LabMachine) -> Any:
    found = instance.content.searchIndex.FindByUuid(None, machine.instance_uuid, True, True)
    assert found is not None
    return found


def wait(task: Any) -> Any:
    """The result of a task; its fault is raised."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        info = task.info
        if info.state == vim.TaskInfo.State.success:
            return info.result
        if info.state == vim.TaskInfo.State.error:
            raise info.error
        time.sleep(0.01)
    raise AssertionError("the task does not end")


def take_snapshot(machine: Any, name: str = "ours", *, quiesce: bool = False) -> Any:
    return wait(machine.CreateSnapshot_Task(name, "words", False, quiesce))


def track(machine: Any) -> None:
    wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))


def disks(item: Any) -> list[Any]:
    """Virtual disks of a VM or a snapshot."""
    return [each for each in item.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]


def areas_of(machine: Any, snapshot: Any, key: int, change_id: str) -> list[tuple[int, int]]:
    """All pages."""
    (capacity,) = [each.capacityInBytes for each in disks(snapshot) if each.key == key]
    position, found = 0, []
    while position < capacity:
        page = machine.QueryChangedDiskAreas(snapshot, key, position, change_id)
        assert page.startOffset == position
        found += [(each.start, each.length) for each in page.changedArea]
        position += page.length
    return found


@contextlib.contextmanager
def https(lab: LabClient) -> Iterator[http.client.HTTPSConnection]:
    connection = http.client.HTTPSConnection(lab.host, lab.port, context=trust(lab), timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def cookie_of(instance: Any) -> dict[str, str]:
    return {"Cookie": instance._stub.cookie.split(";")[0]}
