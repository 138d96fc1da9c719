# SPDX-License-Identifier: Apache-2.0
"""The source `file`: a raw image on this host, for tests and labs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.datapath.sources.contract import Source
from sendense_agent.datapath.sources.nbdkit import claimed, serving
from sendense_common.errors import SendenseError


@dataclass(frozen=True)
class FileSource:
    """See `DiskSource`."""

    path: Path

    name: ClassVar[str] = "file"

    @contextlib.asynccontextmanager
    async def open(self, *, capacity_bytes: int, run_dir: Path, label: str) -> AsyncIterator[Source]:
        """See `DiskSource`."""
        with claimed(run_dir, label) as socket:
            async with serving(
                ["file", f"file={self.path.absolute()}"],
                socket=socket,
                label=label,
                capacity_bytes=capacity_bytes,
                explain=_explain,
            ) as source:
                yield source


def _explain(label: str, words: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_SOURCE_READ_FAILED,
        f"{label}: the file cannot be read: {words}",
        remedy="Is it there, and may this user read it?",
    )
