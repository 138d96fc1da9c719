# SPDX-License-Identifier: Apache-2.0
"""Small files of datastores by HTTPS: descriptors and NVRAM; and the addresses of large ones."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pyVmomi import vim

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere.session import Session
from sendense_agent.vsphere.tls import unreachable
from sendense_common.errors import SendenseError

_FILE_NAME = re.compile(r"\[(?P<datastore>[^\]]+)\] ?(?P<path>.+)")
_EXTENT = re.compile(r'^RW (?P<sectors>\d+) (?P<kind>\S+) "(?P<file>[^"]+)"', re.MULTILINE)
_SECTOR_BYTES = 512
_MOST_BYTES = 4 * 1024 * 1024
_TIMEOUT_S = 60


def split(file_name: str) -> tuple[str, str]:
    """(datastore, path) of "[datastore] folder/file"."""
    found = _FILE_NAME.fullmatch(file_name)
    if found is None:
        raise SendenseError(
            Reason.REASON_DISK_NEEDS_VDDK, f"{file_name!r} is not the name of a file on a datastore"
        )
    return found["datastore"], found["path"]


async def address(session: Session, machine: Any, file_name: str) -> str:
    """Where a file can be read by HTTPS."""
    datastore, path = split(file_name)
    query = urllib.parse.urlencode(
        {"dcPath": await _datacenter_path(session, machine), "dsName": datastore},
        quote_via=urllib.parse.quote,
    )
    target = session.target
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"https://{host}:{target.port}/folder/{urllib.parse.quote(path)}?{query}"


async def fetch(session: Session, url: str, what: str) -> bytes | None:
    """A small file; None when it is not there.

    Raises:
        SendenseError: SOURCE_READ_FAILED, VCENTER_UNREACHABLE.
    """
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=session.trusted.context),
    )
    request = urllib.request.Request(url, headers={"Cookie": session.cookie()})  # noqa: S310 - always https

    def get() -> bytes | None:
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                return bytes(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise SendenseError(
                Reason.REASON_SOURCE_READ_FAILED,
                f"{what} cannot be read from the datastore: HTTP {error.code} {error.reason}",
                remedy="The user needs the privilege Datastore.Browse on the datastore.",
            ) from error
        except urllib.error.URLError as error:
            raise unreachable(session.target, error) from error

    return await session.call(f"reading {what}", get)


async def flat_file(session: Session, machine: Any, descriptor_name: str, capacity_bytes: int) -> str:
    """The address of a disk's extent, by the name that its descriptor gives.

    Raises:
        SendenseError: DISK_NEEDS_VDDK when the descriptor names anything but one plain file of that size.
    """
    text = await fetch(session, await address(session, machine, descriptor_name), descriptor_name)
    found = _EXTENT.findall((text or b"").decode(errors="replace"))
    if len(found) != 1 or found[0][1] != "VMFS" or int(found[0][0]) * _SECTOR_BYTES != capacity_bytes:
        raise SendenseError(
            Reason.REASON_DISK_NEEDS_VDDK,
            f"{descriptor_name} is not one plain file of {capacity_bytes} bytes",
            remedy="Such disks need VMware's library (VDDK).",
        )
    datastore, path = split(descriptor_name)
    folder = path.rpartition("/")[0]
    return await address(session, machine, f"[{datastore}] {folder}/{found[0][2]}")


async def _datacenter_path(session: Session, machine: Any) -> str:
    """Inventory path of the VM's datacenter, without the root folder."""
    names: list[str] = []
    item, inside = machine, False
    while item is not None:
        found = await session.properties(item, "name", "parent")
        inside = inside or isinstance(item, vim.Datacenter)
        if inside and found.get("parent") is not None:
            names.append(found["name"])
        item = found.get("parent")
    return "/".join(reversed(names))
