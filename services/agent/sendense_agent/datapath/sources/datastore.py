# SPDX-License-Identifier: Apache-2.0
"""The source `datastore`: a flat file of a datastore, read by HTTPS with the session of this operation."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources.contract import Source
from sendense_agent.datapath.sources.detour import detour
from sendense_agent.datapath.sources.nbdkit import claimed, serving
from sendense_agent.datapath.sources.session_cookie import SessionCookie
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 120
_COOKIE_AGE_S = 2
_RETRIES = 15
_RETRY_AFTER_S = 2
_RENEW_AT_MOST_EVERY_S = 1.0
_ANSWERED = re.compile(r"returned error: |length of remote file|'range'")
_UNKNOWN_SESSION = re.compile(r"returned error: 401\b")


@dataclass(frozen=True)
class DatastoreSource:
    """See `DiskSource`."""

    url: str
    """Of the flat file."""
    cookie: Callable[[], Awaitable[str]] = field(repr=False)
    """Gives the cookie of a session that the vCenter knows now, as "vmware_soap_session=…"."""
    trust_pem: str = field(repr=False)
    """Certificates that verify the server."""
    server_name: str = ""
    """A name that the server's certificate is for; empty: the one in `url`."""

    name: ClassVar[str] = "datastore"

    @contextlib.asynccontextmanager
    async def open(self, *, capacity_bytes: int, run_dir: Path, label: str) -> AsyncIterator[Source]:
        """See `DiskSource`."""
        async with contextlib.AsyncExitStack() as stack:
            socket = stack.enter_context(claimed(run_dir, label))
            trust = socket.with_suffix(".pem")
            stack.callback(trust.unlink, missing_ok=True)
            trust.write_text(self.trust_pem)
            renewing = await _Renewing.start(stack, self.cookie, label)
            way = await self._way(stack, socket.with_suffix(".way"))
            yield await stack.enter_async_context(
                serving(
                    [
                        "--filter=retry-request",
                        "curl",
                        *way,
                        f"cainfo={trust}",
                        f"cookie-script={renewing.cookie.script}",
                        f"cookie-script-renew={_COOKIE_AGE_S}",
                        "protocols=https",
                        f"timeout={_REQUEST_TIMEOUT_S}",
                        f"retry-request-retries={_RETRIES}",
                        f"retry-request-delay={_RETRY_AFTER_S}",
                        "retry-request-open=false",
                    ],
                    socket=socket,
                    label=label,
                    capacity_bytes=capacity_bytes,
                    explain=renewing.explain,
                    descriptors=[renewing.cookie.descriptor],
                    on_line=renewing.hear,
                )
            )

    async def _way(self, stack: contextlib.AsyncExitStack, socket: Path) -> list[str]:
        """Where curl connects, and by which name: it wants the certificate to be for that very one."""
        parts = urllib.parse.urlsplit(self.url)
        assert parts.hostname is not None
        if self.server_name in {"", parts.hostname}:
            return [f"url={self.url}"]
        await stack.enter_async_context(detour(socket, parts.hostname, parts.port or 443))
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        named = parts._replace(netloc=f"{name}:{parts.port or 443}")
        return [f"url={urllib.parse.urlunsplit(named)}", f"unix-socket-path={socket}"]


class _Renewing:
    """Listens to nbdkit, and gets it another cookie when the server refuses the one it has."""

    def __init__(self, ask: Callable[[], Awaitable[str]], cookie: SessionCookie, label: str) -> None:
        self.cookie = cookie
        self._ask = ask
        self._label = label
        self._task: asyncio.Task[None] | None = None
        self._failure: SendenseError | None = None

    @classmethod
    async def start(
        cls, stack: contextlib.AsyncExitStack, ask: Callable[[], Awaitable[str]], label: str
    ) -> _Renewing:
        """Until the stack ends."""
        cookie = SessionCookie(await ask())
        stack.callback(cookie.close)
        made = cls(ask, cookie, label)
        stack.push_async_callback(made._end)
        return made

    def hear(self, line: str) -> None:
        """A line of nbdkit's."""
        if _UNKNOWN_SESSION.search(line) and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._renew())

    async def _renew(self) -> None:
        began = time.monotonic()
        try:
            self.cookie.set(await self._ask())
            self._failure = None
            log.info("%s: the session was renewed in %.3f s", self._label, time.monotonic() - began)
        except SendenseError as error:
            self._failure = error
            log.warning("%s: renewing the session: %s", self._label, error)
        await asyncio.sleep(_RENEW_AT_MOST_EVERY_S)

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def explain(self, label: str, words: str) -> SendenseError:
        """What nbdkit means: it shows a refused login as an export without a name."""
        if _UNKNOWN_SESSION.search(words):
            return self._failure or SendenseError(
                Reason.REASON_VCENTER_SESSION_LOST,
                f"{label}: the vCenter no longer knows the session: {words}",
                remedy="Start the backup again.",
            )
        if "certificate" in words.lower() or "SSL" in words:
            return SendenseError(
                Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED,
                f"{label}: the server of the datastore's files is not trusted: {words}",
                remedy="The host name must be one that the certificate is for: add the vCenter by that name.",
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
