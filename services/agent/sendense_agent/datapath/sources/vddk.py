# SPDX-License-Identifier: Apache-2.0
"""The source `vddk`: a disk of a snapshot, read with VMware's library through nbdkit's vddk plugin.

The library is VMware's and cannot be part of this project: it is found by configuration. Our tests have seen
a stand-in only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources import nbdkit
from sendense_agent.datapath.sources.contract import Source
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed

log = logging.getLogger(__name__)

DEFAULT_TRANSPORTS = "nbdssl"
Login = Callable[[], contextlib.AbstractAsyncContextManager[tuple[str, str]]]
_LOOK_WITHIN_S = 20.0
# The library logs out when its connection is closed; killed before, its session stays for half an hour.
_STOP_GRACE_S = 20.0
_RETRIES = 3
_RETRY_AFTER_S = 5
# Read-ahead: 4 buffers of 1 MiB for each disk, instead of 64 KiB, as VMware's notes on NFC recommend.
_CONFIG = """\
vixDiskLib.nfcAio.Session.BufSizeIn64KB=16
vixDiskLib.nfcAio.Session.BufCount=4
tmpDirectory="{directory}"
"""
# Not tried again: accounts get locked.
_REFUSED = re.compile(
    r"incorrect user name or password|invalid login|cannot log ?in|login fail", re.IGNORECASE
)
_UNTRUSTED = re.compile(r"thumbprint|certificate", re.IGNORECASE)
_FIELD = re.compile(r"^(?P<name>\w+)=(?P<value>.*)$", re.MULTILINE)


@dataclass(frozen=True)
class VddkSource:
    """See `DiskSource`."""

    libdir: Path
    """Where the library was unpacked: the directory that holds `lib64`."""
    server: str
    port: int
    login: Login = field(repr=False)
    """Opens (user, password) for the block, which is one login."""
    thumbprint: str
    """SHA-1 of the server's certificate, as "AA:BB:…": of the very one that was verified otherwise."""
    machine: str
    """Managed object ID of the VM."""
    snapshot: str
    """Managed object ID of the snapshot."""
    file_name: str
    """Of the disk in the snapshot's hardware list, as "[datastore] folder/name.vmdk"."""
    transports: str = DEFAULT_TRANSPORTS
    """In order of preference, as "san:nbdssl"."""

    name: ClassVar[str] = "vddk"

    @contextlib.asynccontextmanager
    async def open(self, *, capacity_bytes: int, run_dir: Path, label: str) -> AsyncIterator[Source]:
        """See `DiskSource`."""
        async with contextlib.AsyncExitStack() as stack:
            socket = stack.enter_context(nbdkit.claimed(run_dir, label))
            config, directory = socket.with_suffix(".vddk"), socket.with_suffix(".tmp")
            stack.callback(config.unlink, missing_ok=True)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            config.write_text(_CONFIG.format(directory=directory))
            # The handshake with which serving begins shows that the library has logged in.
            async with self.login() as (user, password):
                descriptor = nbdkit.handed_over(password)
                stack.callback(os.close, descriptor)
                del password
                source = await stack.enter_async_context(
                    nbdkit.serving(
                        self._arguments(config, user, descriptor),
                        socket=socket,
                        label=label,
                        capacity_bytes=capacity_bytes,
                        explain=partial(_explain, user),
                        descriptors=[descriptor],
                        environment=environment(self.libdir),
                        stop_grace_s=_STOP_GRACE_S,
                        fatal=_REFUSED,
                    )
                )
            yield source

    def _arguments(self, config: Path, user: str, password: int) -> list[str]:
        return [
            "--filter=retry",
            "vddk",
            f"libdir={self.libdir}",
            f"config={config}",
            f"server={self.server}",
            f"port={self.port}",
            f"thumbprint={self.thumbprint}",
            f"user={user}",
            f"password=-{password}",
            f"vm=moref={self.machine}",
            f"snapshot={self.snapshot}",
            f"transports={self.transports}",
            f"file={self.file_name}",
            f"retries={_RETRIES}",
            f"retry-delay={_RETRY_AFTER_S}",
        ]


def _explain(user: str, label: str, words: str) -> SendenseError:
    if _REFUSED.search(words):
        return SendenseError(
            Reason.REASON_VCENTER_LOGIN_FAILED,
            f"{label}: the vCenter refuses {user!r} through VDDK: {words}",
            remedy="Set the right password: "
            "`sendense vcenter password NAME --username USER --password-file FILE`; "
            "then `sendense vcenter test NAME`.",
        )
    if _UNTRUSTED.search(words):
        return SendenseError(
            Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED,
            f"{label}: VDDK does not trust the server: {words}",
            remedy="The certificate may have changed just now: test the vCenter, start the backup again.",
        )
    return SendenseError(
        Reason.REASON_SOURCE_READ_FAILED,
        f"{label}: VDDK cannot read the disk: {words}",
        remedy="Can the agent reach the ESXi host at port 902? The user needs the privilege "
        "VirtualMachine.Provisioning.DiskRandomRead.",
    )


def environment(libdir: Path) -> dict[str, str]:
    """For nbdkit: else it sets this and starts itself again, and the password goes through a file."""
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join([f"{libdir}/lib64", *([inherited] if inherited else [])])}


async def version(libdir: str) -> str:
    """What nbdkit says of the library in `libdir`, as "VDDK 8"; empty: it cannot be used, see the log."""
    if not libdir:
        return ""
    try:
        child = await nbdkit.start(
            ["nbdkit", "vddk", "--dump-plugin", f"libdir={libdir}"], environment=environment(Path(libdir))
        )
    except SendenseError as error:
        log.warning("VDDK in %s cannot be used: %s", libdir, error)
        return ""
    try:
        async with asyncio.timeout(_LOOK_WITHIN_S):
            output, errors = await child.communicate()
    except TimeoutError:
        log.warning("VDDK in %s cannot be used: no answer within %.0f s", libdir, _LOOK_WITHIN_S)
        return ""
    finally:
        await undisturbed(_ended(child))
    fields = {match["name"]: match["value"] for match in _FIELD.finditer(output.decode(errors="replace"))}
    if child.returncode or fields.get("name") != "vddk":
        log.warning("VDDK in %s cannot be used: %s", libdir, errors.decode(errors="replace").strip())
        return ""
    return f"VDDK {fields.get('vddk_library_version', '')}".strip()


async def _ended(child: asyncio.subprocess.Process) -> None:
    await process.stop(child, grace_s=0.5)
