# SPDX-License-Identifier: Apache-2.0
"""Which export belongs to which site at this moment: what the gateways ask before they open a channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gone:
    """Something that is no longer permitted; one of the two is set."""

    fingerprint: str = ""
    target: str = ""


class ExportTable:
    """Exports of running jobs, and the news that one is no more."""

    def __init__(self) -> None:
        self._exports: dict[str, tuple[str, Path]] = {}
        self._listeners: set[asyncio.Queue[Gone]] = set()

    def open(self, export_name: str, site: str, socket: Path) -> None:
        """The agent of `site` may open it from now on."""
        self._exports[export_name] = (site, socket)

    def close(self, export_name: str) -> None:
        """Nobody may; open channels are closed by the gateways."""
        if self._exports.pop(export_name, None):
            self._tell(Gone(target=f"nbd/{export_name}"))

    def revoke_key(self, fingerprint: str) -> None:
        """A key has lost all its rights; the gateways end its connections."""
        self._tell(Gone(fingerprint=fingerprint))

    def socket(self, export_name: str, site: str) -> Path | None:
        """Its unix socket, if the agent of `site` may open it."""
        owner, socket = self._exports.get(export_name, ("", None))
        return socket if owner == site else None

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[asyncio.Queue[Gone]]:
        """Everything that ends while the block runs."""
        queue: asyncio.Queue[Gone] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def _tell(self, gone: Gone) -> None:
        for queue in self._listeners:
            queue.put_nowait(gone)
