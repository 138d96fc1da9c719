# SPDX-License-Identifier: Apache-2.0
"""The vCenter as an administrator has it, by pyvmomi alone: independent of what is being tested. Blocks."""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import SoapStubAdapter, vim, vmodl

OURS = "Sendense backup"
"""Descriptions of Sendense's snapshots begin so."""
_TASK_WITHIN_S = 1800.0
_EXTENT = re.compile(r'^RW \d+ VMFS "([^"/]+)"', re.MULTILINE)
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Address:
    """Where the vCenter is, and how it is recognized: by one of the last two."""

    host: str
    port: int
    ca_file: str = ""
    thumbprint: str = ""
    """SHA-256 of its certificate."""

    def context(self) -> ssl.SSLContext:
        """Trusts that vCenter only; ssl.SSLError, OSError, ValueError."""
        if self.ca_file:
            return ssl.create_default_context(cafile=self.ca_file)
        pem = ssl.get_server_certificate((self.host, self.port), timeout=20)
        shown = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
        if shown != self.thumbprint.replace(":", "").upper():
            raise ValueError(
                f"{self.host} shows a certificate with the SHA-256 {shown}, not {self.thumbprint}"
            )
        context = ssl.create_default_context(cadata=pem)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


class Site:
    """One login, until `close`."""

    def __init__(self, address: Address, username: str, password: str) -> None:
        """Logs in; what vSphere or the network says comes out."""
        self._address = address
        self._context = address.context()
        self._stub = SoapStubAdapter(
            host=address.host, port=address.port, version="vim.version.v7_0", sslContext=self._context
        )
        self.username = username
        service: Any = vim.ServiceInstance("ServiceInstance", self._stub)
        self.content = service.RetrieveContent()
        self._session = self.content.sessionManager.Login(username, password, None).key

    def close(self) -> None:
        """Logs out."""
        self.content.sessionManager.Logout()
        self._stub.DropConnections()

    def machine(self, name: str) -> Any:
        """The VM of that name; LookupError when it is not exactly one."""
        view = self.content.viewManager.CreateContainerView(
            self.content.rootFolder, [vim.VirtualMachine], True
        )
        try:
            found = [each for each in view.view if urllib.parse.unquote(each.name) == name]
        finally:
            view.DestroyView()
        if len(found) != 1:
            raise LookupError(f"there are {len(found)} VMs with the name {name}")
        return found[0]

    def datastore(self, name: str) -> Any:
        """LookupError when there is none."""
        view = self.content.viewManager.CreateContainerView(self.content.rootFolder, [vim.Datastore], True)
        try:
            for each in view.view:
                if each.name == name:
                    return each
        finally:
            view.DestroyView()
        raise LookupError(f"there is no datastore {name}")

    def other_sessions(self) -> list[str] | None:
        """Keys of other sessions of this user; None when he may not see them."""
        try:
            sessions = self.content.sessionManager.sessionList
        except vim.fault.NoPermission:
            return None
        return [each.key for each in sessions if each.userName == self.username and each.key != self._session]

    def end_sessions(self, keys: list[str]) -> None:
        """An administrator ends sessions."""
        self.content.sessionManager.TerminateSession(keys)

    def sha256(self, machine: Any, disk: Any) -> str:
        """Of a disk's file, read over HTTPS; LookupError when it is no plain file."""
        store = disk.backing.datastore
        if type(disk.backing) is not vim.vm.device.VirtualDisk.FlatVer2BackingInfo or disk.backing.parent:
            raise LookupError("its backing is no plain file")
        name = disk.backing.fileName.partition("] ")[2]
        descriptor = b"".join(self._get(machine, store, name, most_bytes=1 << 20)).decode(errors="replace")
        found = _EXTENT.search(descriptor)
        if found is None:
            raise LookupError("its descriptor names no plain file")
        digest = hashlib.sha256()
        for chunk in self._get(machine, store, f"{name.rpartition('/')[0]}/{found[1]}"):
            digest.update(chunk)
        return digest.hexdigest()

    def _get(self, machine: Any, store: Any, path: str, most_bytes: int = 1 << 62) -> Iterator[bytes]:
        datacenter = machine
        while not isinstance(datacenter, vim.Datacenter):
            datacenter = datacenter.parent
        query = urllib.parse.urlencode({"dcPath": datacenter.name, "dsName": store.name})
        connection = http.client.HTTPSConnection(
            self._address.host, self._address.port, context=self._context, timeout=120
        )
        try:
            cookie = self._stub.cookie.split(";", maxsplit=1)[0]
            connection.request(
                "GET", f"/folder/{urllib.parse.quote(path)}?{query}", headers={"Cookie": cookie}
            )
            answer = connection.getresponse()
            if answer.status != 200:
                raise LookupError(f"{path}: HTTP {answer.status}")
            while most_bytes > 0 and (chunk := answer.read(min(_CHUNK_BYTES, most_bytes))):
                most_bytes -= len(chunk)
                yield chunk
        finally:
            connection.close()


def wait(task: Any) -> Any:
    """The result of a task; its fault is raised, TimeoutError."""
    deadline = time.monotonic() + _TASK_WITHIN_S
    while time.monotonic() < deadline:
        info = task.info
        if info.state == vim.TaskInfo.State.success:
            return info.result
        if info.state == vim.TaskInfo.State.error:
            raise info.error
        time.sleep(0.2)
    raise TimeoutError("vSphere's task does not end")


def disks(machine: Any) -> list[Any]:
    """Virtual disks of a VM."""
    return [each for each in machine.config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]


def is_on(machine: Any) -> bool:
    """Whether it runs."""
    return bool(machine.runtime.powerState == vim.VirtualMachine.PowerState.poweredOn)


def snapshots(machine: Any) -> list[Any]:
    """Trees of all its snapshots."""
    info = machine.snapshot
    pending = list(info.rootSnapshotList) if info else []
    found = []
    while pending:
        found.append(pending.pop())
        pending += found[-1].childSnapshotList or []
    return found


def ours(machine: Any) -> list[Any]:
    """Those that Sendense made."""
    return [each for each in snapshots(machine) if (each.description or "").startswith(OURS)]


def track(machine: Any, *, on: bool) -> None:
    """Switches change tracking."""
    wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=on)))


def change_disk(machine: Any, operation: str, disk: Any, file_operation: str = "") -> None:
    """Adds, edits or removes a disk."""
    values = {"fileOperation": file_operation} if file_operation else {}
    change = vim.vm.device.VirtualDeviceSpec(operation=operation, device=disk, **values)
    wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))


def words(error: BaseException) -> str:
    """Of a fault or any other error."""
    if isinstance(error, vmodl.MethodFault):
        return f"{type(error).__name__}: {error.msg}"
    return str(error) or type(error).__name__
