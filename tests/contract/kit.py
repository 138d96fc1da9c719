# SPDX-License-Identifier: Apache-2.0
"""A stand for each source: its data, a way to break it, and what must not be seen of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import nbd
import pytest
from tests.contract.stand_in_nbdkit import Library, install
from tests.integration.vsphere.kit import freeze, opened

from sendense_agent.datapath.sources import (
    DatastoreSource,
    DiskSource,
    FileSource,
    Source,
    VddkSource,
)
from sendense_agent.vsphere import find_machine
from sendense_agent.worker.reading import datastore_source
from sendense_lab.client import LabClient

CAPACITY = 3 * 65536 + 512
DATA = random.Random(25).randbytes(2 * 65536) + bytes(65536) + random.Random(26).randbytes(512)
USER, PASSWORD = "administrator@vsphere.local", "correct horse"
THUMBPRINT = ":".join(["5E"] * 20)
REFUSED_LATER = "[data store] refused later.vmdk"


@dataclass
class Stand:
    """One source and what is behind it."""

    source: DiskSource
    break_reads: Callable[[], Awaitable[None]]
    """From now on reads fail."""
    secrets: Callable[[], list[bytes]] = list
    """As they are now."""
    run_dir: Path = field(default_factory=Path)
    _readers: dict[Path, contextlib.AsyncExitStack] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def open(self, label: str = "disk", capacity_bytes: int = CAPACITY) -> AsyncIterator[Source]:
        """Its readers are gone before it ends, as movers are; nbdkit would wait for them."""
        opening = self.source.open(capacity_bytes=capacity_bytes, run_dir=self.run_dir, label=label)
        async with opening as source, contextlib.AsyncExitStack() as readers:
            self._readers[source.socket] = readers
            yield source

    async def reader(self, source: Source) -> Reader:
        """A connection to it."""
        made = await asyncio.to_thread(Reader, source)
        self._readers[source.socket].callback(made.close)
        return made

    def left(self) -> list[str]:
        """Files and processes."""
        files = [str(each) for each in self.run_dir.rglob("*")] if self.run_dir.exists() else []
        return files + [str(pid) for pid in processes(self.run_dir)]


@contextlib.asynccontextmanager
async def a_file(directory: Path, lab: LabClient, patch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    raw = directory / "raw image"
    raw.write_bytes(DATA)

    async def truncate() -> None:
        os.truncate(raw, 0)

    yield Stand(FileSource(raw), truncate)


@contextlib.asynccontextmanager
async def a_library(directory: Path, lab: LabClient, patch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    """VMware's, as far as it can be had."""
    raw = directory / "raw"
    raw.write_bytes(DATA)
    source = vddk_source(directory)
    nbdkit = shutil.which("nbdkit")
    assert nbdkit is not None
    library = Library(
        nbdkit=nbdkit,
        libdir=str(source.libdir),
        user=USER,
        password=PASSWORD,
        thumbprint=THUMBPRINT,
        disks={source.file_name: str(raw), REFUSED_LATER: ""},
        record=str(directory / "record"),
    )
    patch.setenv("PATH", f"{install(directory, library)}:{os.environ['PATH']}")

    async def truncate() -> None:
        os.truncate(raw, 0)

    yield Stand(source, truncate, lambda: [PASSWORD.encode()])


def login(password: str = PASSWORD) -> Callable[[], AbstractAsyncContextManager[tuple[str, str]]]:
    """As a lease opens it."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[tuple[str, str]]:
        yield USER, password

    return opened


def vddk_source(directory: Path) -> VddkSource:
    return VddkSource(
        libdir=directory / "vmware-vix-disklib-distrib",
        server="vcenter.example.com",
        port=8443,
        login=login(),
        thumbprint=THUMBPRINT,
        machine="vm-16",
        snapshot="snapshot-17",
        file_name="[data store] a folder/web=1.vmdk",
        transports="san:nbdssl",
    )


@contextlib.asynccontextmanager
async def a_datastore(directory: Path, lab: LabClient, patch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    name = f"vm-{directory.name}"
    vm = await lab.add_vm(name, [CAPACITY])
    await lab.guest_write(name, vm.disks[0], 0, DATA)
    async with opened(lab) as session:
        machine = await find_machine(session, vm.instance_uuid, name)
        snapshot = await freeze(machine)
        await lab.guest_write(name, vm.disks[0], 0, b"written later")

        async def refuse() -> None:
            await lab.inject_fault("GET /folder", "500", times=1000)

        url = await snapshot.source_url(snapshot.disks[0])
        yield Stand(datastore_source(session, url), refuse, lambda: [session.cookie().encode()])
        await lab.command("clear_faults")


STANDS = {DatastoreSource.name: a_datastore, FileSource.name: a_file, VddkSource.name: a_library}


def processes(directory: Path) -> list[int]:
    """Those that name a directory."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit() and int(each.name) != os.getpid():
            with contextlib.suppress(OSError):
                if str(directory).encode() in (each / "cmdline").read_bytes():
                    found.append(int(each.name))
    return found


def descriptors() -> list[str]:
    """Of this process."""
    return sorted(each.name for each in Path("/proc/self/fd").iterdir())


class Reader:
    """One NBD connection to a source."""

    def __init__(self, source: Source) -> None:
        self._handle = nbd.NBD()
        self._handle.set_export_name(source.export_name)
        self._handle.connect_unix(str(source.socket))

    def close(self) -> None:
        del self._handle

    @property
    def size(self) -> int:
        return int(self._handle.get_size())

    @property
    def writable(self) -> bool:
        return not self._handle.is_read_only()

    async def read(self, offset: int = 0, length: int = CAPACITY) -> bytes:
        return bytes(await asyncio.to_thread(self._handle.pread, length, offset))


async def until(condition: Callable[[], object], what: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
