# SPDX-License-Identifier: Apache-2.0
"""Which source reads the disks of a site's VMs, and what it needs to know of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from sendense_agent.config import AgentConfig
from sendense_agent.datapath.sources import DatastoreSource, DiskSource, VddkSource
from sendense_agent.vsphere import Session, Snapshot, VirtualDisk


async def disk_source(
    config: AgentConfig, session: Session, snapshot: Snapshot, disk: VirtualDisk
) -> DiskSource:
    """How a disk of a snapshot is read: with VMware's library where it can be used, else by HTTPS.

    Raises:
        SendenseError: DISK_NEEDS_VDDK; preflight should have refused it already.
    """
    return await _CHOICE[VddkSource.name if session.vddk else DatastoreSource.name](
        config, session, snapshot, disk
    )


async def _datastore(
    config: AgentConfig, session: Session, snapshot: Snapshot, disk: VirtualDisk
) -> DiskSource:
    return datastore_source(session, await snapshot.source_url(disk))


async def _vddk(config: AgentConfig, session: Session, snapshot: Snapshot, disk: VirtualDisk) -> DiskSource:
    return VddkSource(
        libdir=Path(config.vddk_libdir),
        server=session.target.host,
        port=session.target.port,
        login=session.login,
        thumbprint=session.trusted.sha1_thumbprint,
        machine=snapshot.machine_moref,
        snapshot=snapshot.moref,
        file_name=disk.file_name,
        transports=config.vddk_transports,
    )


def datastore_source(session: Session, url: str) -> DatastoreSource:
    """A file behind the vCenter."""
    return DatastoreSource(
        url=url,
        cookie=session.current_cookie,
        context=session.trusted.context,
    )


_CHOICE: dict[str, Callable[[AgentConfig, Session, Snapshot, VirtualDisk], Awaitable[DiskSource]]] = {
    DatastoreSource.name: _datastore,
    VddkSource.name: _vddk,
}
