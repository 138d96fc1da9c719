# SPDX-License-Identifier: Apache-2.0
"""A sample of what a disk of a point holds, for the site to compare with what it reads."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from sendense_hub.repository import layers, programs
from sendense_hub.repository.export import open_export
from sendense_hub.repository.layout import LayerRef, Repository
from sendense_hub.repository.ledger import RECORD


@dataclass(frozen=True)
class AuditPolicy:
    """How much of what did not change is read again at each incremental."""

    percent: float = 0.0
    """Of each disk; 0: nothing."""
    max_bytes: int = 1 << 30
    """Of each disk and backup."""

    @property
    def on(self) -> bool:
        """Whether anything is."""
        return self.percent > 0 and self.max_bytes > 0


async def sample(
    repository: Repository, layer: LayerRef, policy: AuditPolicy, seed: int, socket: Path
) -> bytes:
    """Records as in ledgers, ascending, by a process of its own; see `sampler`.

    What they say is read from the layers: the cost grows with the sample, not with the disk or its chain.

    Args:
        repository: where it is.
        layer: of a complete point.
        policy: how much.
        seed: the same one draws the same of the same chain.
        socket: for reading the chain meanwhile; it is free again afterwards.

    Raises:
        SendenseError: POINT_CORRUPT, POINT_INCOMPLETE, EXPORT_FAILED, REPOSITORY_UNAVAILABLE.
    """
    document = await asyncio.to_thread(repository.read_document, layer.directory)
    chain = await asyncio.to_thread(repository.chain, document, layer.disk_key)
    ledgers = [
        repository.layer_path(point, layer.disk_key).with_name(point.disk(layer.disk_key).ledger_file)
        for point in chain
    ]
    view = await open_export(
        repository.root / layer.directory / layer.file,
        "audit",
        socket,
        capacity_bytes=layer.capacity_bytes,
        connections=1,
        read_only=True,
    )
    try:
        drawn = await programs.run(
            sys.executable,
            "-m",
            "sendense_hub.repository.sampler",
            view.uri,
            str(seed),
            str(policy.percent),
            str(policy.max_bytes),
            *map(str, ledgers),
        )
    finally:
        await view.stop()
    if drawn.code or len(drawn.output) % RECORD.size:
        raise layers.failed(drawn, f"what point {document.point_id} holds could not be sampled")
    return drawn.output
