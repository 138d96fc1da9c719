# SPDX-License-Identifier: Apache-2.0
"""What a source of a disk is; `tests/contract` holds every source to it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol


@dataclass(frozen=True)
class Source:
    """A disk that can be read by NBD, while its `open` runs."""

    socket: Path
    export_name: str
    capacity_bytes: int


class DiskSource(Protocol):
    """One disk of a snapshot (or a file), and a way to read it.

    **Making one** does nothing: no process, no connection, no file.

    **Opening** starts a server of its own in `run_dir`, and gives it out only after a handshake has shown the
    capacity. A source may be opened again and again, one after another; two that are open at once in one
    directory need different labels, and the second of one label is refused, the first undisturbed. What an
    opening that was killed left under the label is replaced.

    **Reading.** Any number of connections, at any bytes within the capacity, which is a multiple of 512;
    nothing is ever written. What cannot be read is an error of that request, never zeroes, and never the end
    of the server. A source tries again by itself where that can help, for half a minute or so. Which parts
    hold data is not promised: that is asked of the snapshot.

    **Ending**, however it comes (the block ends, raises, or is cancelled, also while it opens), leaves no
    process, no socket, no file and no descriptor, and no session at a server.

    **Secrets** go to the server by inherited descriptor; none is in a command line, an environment or a file.

    **Errors** are SendenseErrors. For good: DISK_MISMATCH (another size), TOOL_MISSING, DISK_NEEDS_VDDK,
    VCENTER_LOGIN_FAILED, VCENTER_CERTIFICATE_NOT_TRUSTED. A later try may help: SOURCE_READ_FAILED,
    VCENTER_SESSION_LOST. A SOURCE_READ_FAILED that leaves the block comes out with the cause that the server
    named, if it named one.

    Disks that a source cannot read are refused before a snapshot is made; see `VirtualDisk.vddk_reason`.
    """

    name: ClassVar[str]

    def open(self, *, capacity_bytes: int, run_dir: Path, label: str) -> AbstractAsyncContextManager[Source]:
        """Serves the disk until the block ends.

        Args:
            capacity_bytes: that the disk must have.
            run_dir: for the socket and what else there must be; made if it is missing, and private.
            label: for messages and file names.
        """
        ...
