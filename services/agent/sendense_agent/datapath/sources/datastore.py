# SPDX-License-Identifier: Apache-2.0
"""The source `datastore`: a flat file of a datastore, read by HTTPS with the session of this operation."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources.contract import Source
from sendense_agent.datapath.sources.gate import Gate, Origin
from sendense_agent.datapath.sources.nbdkit import claimed, serving
from sendense_common.errors import SendenseError

_REQUEST_TIMEOUT_S = 240
_RETRIES = 15
_RETRY_AFTER_S = 2
_ANSWERED = re.compile(r"returned error: |length of remote file|'range'")
_UNKNOWN_SESSION = re.compile(r"returned error: 401\b")


@dataclass(frozen=True)
class DatastoreSource:
    """See `DiskSource`."""

    url: str
    """Of the flat file."""
    cookie: Callable[[], Awaitable[str]] = field(repr=False)
    """Gives the cookie of a session that the vCenter knows now, as "vmware_soap_session=…"."""
    context: ssl.SSLContext = field(repr=False)
    """Verifies the server."""

    name: ClassVar[str] = "datastore"

    @contextlib.asynccontextmanager
    async def open(self, *, capacity_bytes: int, run_dir: Path, label: str) -> AsyncIterator[Source]:
        """See `DiskSource`."""
        with claimed(run_dir, label) as socket:
            way = socket.with_suffix(".way")
            origin = Origin(self.url, self.context, self.cookie, capacity_bytes)

            def explain(label: str, words: str) -> SendenseError:
                return gate.failure or _meaning(label, words)

            async with (
                Gate.opened(way, origin, label) as gate,
                serving(
                    [
                        "--filter=retry-request",
                        "curl",
                        "url=http://disk/",
                        f"unix-socket-path={way}",
                        "protocols=http",
                        f"timeout={_REQUEST_TIMEOUT_S}",
                        f"retry-request-retries={_RETRIES}",
                        f"retry-request-delay={_RETRY_AFTER_S}",
                        "retry-request-open=false",
                    ],
                    socket=socket,
                    label=label,
                    capacity_bytes=capacity_bytes,
                    explain=explain,
                    environment={"no_proxy": "*"},
                ) as source,
            ):
                yield source


def _meaning(label: str, words: str) -> SendenseError:
    """What nbdkit means: it shows a refused login as an export without a name."""
    if _UNKNOWN_SESSION.search(words):
        return SendenseError(
            Reason.REASON_VCENTER_SESSION_LOST,
            f"{label}: the vCenter does not let its session read the datastore's files: {words}",
            remedy="Start the backup again.",
        )
    return SendenseError(
        Reason.REASON_SOURCE_READ_FAILED,
        f"{label}: the disk cannot be opened: {words}",
        remedy="Look at the vCenter's log and at the datastore.",
    )


async def try_the_way(source: DatastoreSource, *, run_dir: Path, label: str) -> None:
    """Whether the datastores' files can be reached as `source` would: any answer of the server's will do.

    Raises:
        SendenseError: VCENTER_CERTIFICATE_NOT_TRUSTED, SOURCE_READ_FAILED, TOOL_MISSING.
    """
    try:
        async with source.open(capacity_bytes=0, run_dir=run_dir, label=label):
            pass
    except SendenseError as error:
        if error.reason != Reason.REASON_DISK_MISMATCH and not _ANSWERED.search(error.message):
            raise
