# SPDX-License-Identifier: Apache-2.0
"""The agent's vSphere access and a simulated vCenter, with something in between that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.integration.lab.kit import PASSWORD, USERNAME

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere import Machine, Session, Snapshot, VcenterTarget, find_machine, open_session
from sendense_common.errors import SendenseError
from sendense_lab.client import LabClient, LabMachine

GRANULE = 65536
HUB, JOB = "hub-1", "0b0b0b0b-0000-4000-8000-000000000001"


def target(lab: LabClient, **changes: Any) -> VcenterTarget:
    """Recognized by its authority."""
    known = {"name": "lab", "host": lab.host, "port": lab.port, "ca_pem": lab.ca_file.read_text()}
    return VcenterTarget(**{**known, **changes})


def pinned(lab: LabClient, **changes: Any) -> VcenterTarget:
    """Recognized by its certificate."""
    return target(lab, ca_pem="", certificate_sha256=fingerprint(lab), **changes)


def fingerprint(lab: LabClient) -> bytes:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(lab.server_certificate.read_text())).digest()


@contextlib.asynccontextmanager
async def opened(lab: LabClient, **changes: Any) -> AsyncIterator[Session]:
    async with open_session(target(lab, **changes), USERNAME, PASSWORD, again=again) as session:
        yield session


@contextlib.asynccontextmanager
async def again() -> AsyncIterator[tuple[str, str]]:
    """As another lease opens them."""
    yield USERNAME, PASSWORD


@contextlib.contextmanager
def fails(
    reason: Reason.ValueType, words: str | None = None
) -> Iterator[pytest.ExceptionInfo[SendenseError]]:
    """Expects one of our errors."""
    with pytest.raises(SendenseError, match=words) as caught:
        yield caught
    assert caught.value.reason == reason, caught.value


async def tracked(lab: LabClient, session: Session, name: str, *disks: Any) -> tuple[LabMachine, Machine]:
    """A VM with change tracking on."""
    vm = await lab.add_vm(name, list(disks))
    machine = await find_machine(session, vm.instance_uuid, name)
    assert await machine.enable_changed_block_tracking()
    await machine.refresh()
    return vm, machine


async def freeze(
    machine: Machine, job: str = JOB, quiesce: pb.QuiesceMode.ValueType = pb.QUIESCE_MODE_OFF
) -> Snapshot:
    return await machine.create_snapshot(HUB, job, quiesce)


async def calls(lab: LabClient, method: str) -> int:
    """How often a method was called so far."""
    return (await lab.counters()).get(f"call {method}", 0)


async def eventually(condition: Any, what: str, within_s: float = 30.0) -> None:
    """Polls an async condition."""
    deadline = asyncio.get_running_loop().time() + within_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"{what}: not within {within_s} s"
        await asyncio.sleep(0.01)


class Wire:
    """Passes bytes on to a port of 127.0.0.1, until it is cut."""

    def __init__(self, port: int) -> None:
        self.to_port = port
        self.port = 0
        self.refuse = 0
        """So many connections from now on end at once."""
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Ends all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            self.refuse -= 1
            await reader.read(65536)  # else the end is a reset, at which Python's ssl leaks the socket
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.to_port)
        mine = {writer, back}
        self._writers |= mine
        try:
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            self._writers -= mine
            for each in mine:
                each.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def wire(lab: LabClient) -> AsyncIterator[Wire]:
    """A way to a lab that can be cut."""
    made = Wire(lab.port)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await server.wait_closed()
