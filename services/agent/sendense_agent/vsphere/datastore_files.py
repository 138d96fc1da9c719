# SPDX-License-Identifier: Apache-2.0
"""Small files of datastores by HTTPS: descriptors and NVRAM; and the addresses of large ones."""

from __future__ import annotations

import asyncio
import http.client
import logging
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pyVmomi import vim

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.byte_range import ranges_ignored, wrong_answer
from sendense_agent.vsphere.disks import moid
from sendense_agent.vsphere.session import Session
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

T = TypeVar("T")

_FILE_NAME = re.compile(r"\[(?P<datastore>[^\]]+)\] ?(?P<path>.+)")
_ENCODING = re.compile(rb'^encoding="(?P<name>[^"]+)"', re.MULTILINE)
_EXTENT = re.compile(r'^RW (?P<sectors>\d+) (?P<kind>\S+) "(?P<file>[^"]+)"', re.MULTILINE)
_PARENT = re.compile(r"^parentCID=(?!ffffffff)", re.MULTILINE | re.IGNORECASE)
_SECTOR_BYTES = 512
_MOST_BYTES = 4 * 1024 * 1024
_TIMEOUT_S = 60
_SERVER_ERROR = 500
# A server that is overloaded says so for a moment.
_PAUSES_S = (1.0, 3.0)


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
    return f"{folder(session)}/{urllib.parse.quote(path)}?{query}"


def folder(session: Session) -> str:
    """Below which all files of all datastores are."""
    target = session.target
    host = f"[{target.host}]" if ":" in target.host else target.host
    return f"https://{host}:{target.port}/folder"


async def fetch(session: Session, url: str, what: str) -> bytes | None:
    """A small file; None when it is not there.

    Raises:
        SendenseError: SOURCE_READ_FAILED, VCENTER_UNREACHABLE, VCENTER_SESSION_LOST.
    """

    def whole(answer: http.client.HTTPResponse) -> bytes:
        data = answer.read(_MOST_BYTES)
        if answer.length and len(data) == _MOST_BYTES:
            raise SendenseError(Reason.REASON_SOURCE_READ_FAILED, f"{what} has more than {_MOST_BYTES} bytes")
        if answer.length:  # reading a number of bytes does not tell by itself that it broke off
            raise http.client.IncompleteRead(data, answer.length)
        return data

    return await _get(session, url, what, {}, whole)


async def _get(
    session: Session,
    url: str,
    what: str,
    headers: Mapping[str, str],
    take: Callable[[http.client.HTTPResponse], T],
) -> T | None:
    """What `take` makes of an answer; None when there is no such file, or no such part of it."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=session.trusted.context),
    )

    def get() -> T | None:
        sent = {**headers, "Cookie": session.cookie()}
        request = urllib.request.Request(url, headers=sent)  # noqa: S310 - https
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                return take(answer)
        except http.client.IncompleteRead as error:
            # Who began to answer is there: a job does not wait for days for that to become better.
            raise SendenseError(
                Reason.REASON_SOURCE_READ_FAILED,
                f"{what} cannot be read from the datastore: the answer broke off after "
                f"{len(error.partial)} bytes",
                remedy="Look at the vCenter's log, and at what is between it and the site.",
                retryable=True,
            ) from error
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in {404, 416}:
                return None
            if error.code == 401:
                raise vim.fault.NotAuthenticated(msg=f"HTTP 401 for {what}") from error
            forbidden = error.code == 403
            raise SendenseError(
                Reason.REASON_SOURCE_READ_FAILED,
                f"{what} cannot be read from the datastore: HTTP {error.code} {error.reason}",
                remedy="The user needs the privilege Datastore.Browse on the datastore."
                if forbidden
                else "Look at the vCenter's log.",
                retryable=error.code >= _SERVER_ERROR,
            ) from error

    for pause_s in _PAUSES_S:
        try:
            return await session.read(f"reading {what}", get)
        except SendenseError as error:
            if error.reason != Reason.REASON_SOURCE_READ_FAILED or not error.retryable:
                raise
            log.warning("%s; again in %.0f s", error.message, pause_s)
            await asyncio.sleep(pause_s)
    return await session.read(f"reading {what}", get)


async def flat_file(session: Session, machine: Any, descriptor_name: str, capacity_bytes: int) -> str:
    """The address of a disk's extent, by the name that its descriptor gives.

    Raises:
        SendenseError: DISK_NEEDS_VDDK when the descriptor names anything but one plain file of that size;
            SOURCE_IGNORES_RANGES when no part of that file can be had.
    """
    text = await fetch(session, await address(session, machine, descriptor_name), descriptor_name)
    words = _decoded(text or b"")
    found = _EXTENT.findall(words)
    plain = len(found) == 1 and found[0][1] == "VMFS" and "/" not in found[0][2]  # vSAN: "vsan://…"
    plain = plain and not _PARENT.search(words)
    if not plain or int(found[0][0]) * _SECTOR_BYTES != capacity_bytes:
        raise SendenseError(
            Reason.REASON_DISK_NEEDS_VDDK,
            f"{descriptor_name} is not one plain file of {capacity_bytes} bytes",
            remedy="Such disks need VMware's library (VDDK).",
        )
    flat = sibling(descriptor_name, found[0][2])
    url = await address(session, machine, flat)
    await _check_ranges(session, url, flat, capacity_bytes)
    return url


async def _check_ranges(session: Session, url: str, file_name: str, capacity_bytes: int) -> None:
    """Asks for the last sector, and takes nothing else for an answer.

    Something on the way that drops the header Range makes every read one of the file's beginning: all bytes
    would come from the wrong place, without any error.
    """
    asked = f"bytes={capacity_bytes - _SECTOR_BYTES}-{capacity_bytes - 1}"

    def last_sector(answer: http.client.HTTPResponse) -> str:
        if wrong := wrong_answer(asked, answer.status, answer.headers):
            return wrong
        found = len(answer.read(_SECTOR_BYTES + 1))
        return "" if found == _SECTOR_BYTES else f"{found} bytes for {asked}"

    wrong = await _get(session, url, file_name, {"Range": asked}, last_sector)
    if wrong:
        raise ranges_ignored(f"{file_name} at vCenter {session.name}", wrong)


def sibling(file_name: str, other: str) -> str:
    """The name of another file in the same folder of the same datastore."""
    datastore, path = split(file_name)
    folder, slash, _ = path.rpartition("/")
    return f"[{datastore}] {folder}{slash}{other}"


async def datastore_types(session: Session, devices: Iterable[Any]) -> dict[str, str]:
    """Types of the datastores on which a hardware list's disks are, by managed object ID."""
    stores = {}
    for device in devices:
        store = getattr(getattr(device, "backing", None), "datastore", None)
        if isinstance(device, vim.vm.device.VirtualDisk) and store is not None:
            stores[moid(store)] = store
    return {
        name: (await session.properties(store, "summary.type")).get("summary.type", "")
        for name, store in stores.items()
    }


def _decoded(descriptor: bytes) -> str:
    """A descriptor's text; its encoding is that of the machine where the VM was made."""
    named = _ENCODING.search(descriptor)
    try:
        return descriptor.decode(named["name"].decode("ascii", "replace") if named else "utf-8", "replace")
    except LookupError:
        return descriptor.decode("utf-8", "replace")


async def _datacenter_path(session: Session, machine: Any) -> str:
    """Inventory path of the VM's datacenter, without the root folder."""
    names: list[str] = []
    above = await session.properties(machine, "parent", "parentVApp")
    item, inside = above.get("parent") or above.get("parentVApp"), False
    while item is not None:
        found = await session.properties(item, "name", "parent")
        datacenter = isinstance(item, vim.Datacenter)
        inside = inside or datacenter
        # The root folder has no parent and is no part of a path. A user with few rights sees no root folder.
        if datacenter or (inside and found.get("parent") is not None):
            names.append(found["name"])
        item = found.get("parent")
    return "/".join(reversed(names))
