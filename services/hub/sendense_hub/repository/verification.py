# SPDX-License-Identifier: Apache-2.0
"""Checking a restore point: every byte that it would give back, against what was noted when it was made.

Each layer of a disk's chain is compared with its own ledger, as it was seen at its own point; then the newest
view is read whole: what no ledger speaks of must be zeroes, and the rest gives the disk's SHA-256. The bytes
are read by a process of its own (`verifier`), through one qemu-nbd after the other, read-only. What the
points' documents hold beside the disks was compared with its digest when they were read.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sendense_hub.repository import layers
from sendense_hub.repository.committed_ledgers import committed_ledger
from sendense_hub.repository.damage import damaged
from sendense_hub.repository.document import PointDocument
from sendense_hub.repository.export import open_export
from sendense_hub.repository.layout import Repository
from sendense_hub.repository.point_writer import check_chain
from sendense_hub.repository.verifier_process import Report, verifier_process

_CONNECTIONS = 1


@dataclass(frozen=True)
class VerifyProgress:
    """How far it is."""

    disk_key: int
    read_bytes: int
    """Of all disks so far."""
    total_bytes: int
    """Of all disks: layers and whole views."""
    sha256: bytes = b""
    """Of the whole disk, in its last report."""


@dataclass(frozen=True)
class DiskChain:
    """The layers and ledgers of one disk, the full's first; headers and digests of ledgers are right."""

    disk_key: int
    points: Sequence[PointDocument]
    layers: Sequence[Path]
    ledgers: Sequence[Path]

    @property
    def capacity_bytes(self) -> int:
        """Of the disk, now."""
        return self.points[-1].disk(self.disk_key).capacity_bytes


async def disk_chain(repository: Repository, document: PointDocument, disk_key: int) -> DiskChain:
    """Looks at all there is of one disk but the data itself.

    Raises:
        SendenseError: POINT_CORRUPT with point and disk.
    """
    points = await asyncio.to_thread(repository.chain, document, disk_key)
    paths = await check_chain(repository, points, disk_key)
    ledgers = [
        await asyncio.to_thread(committed_ledger, path.parent, point, disk_key)
        for point, path in zip(points, paths, strict=True)
    ]
    return DiskChain(disk_key, points, paths, ledgers)


async def check_committed(repository: Repository, document: PointDocument) -> None:
    """Whether a point with a commit mark has all that belongs to it, data unread: quick.

    Raises:
        SendenseError: POINT_CORRUPT with point and disk.
    """
    for disk in document.disks:
        await disk_chain(repository, document, disk.key)


async def verify_point(
    repository: Repository, document: PointDocument, run_dir: Path
) -> AsyncGenerator[VerifyProgress, None]:
    """Checks all disks of a point.

    Args:
        repository: where it is.
        document: the point.
        run_dir: for sockets, and for as much as the ledgers of a disk's chain hold.

    Raises:
        SendenseError: POINT_CORRUPT with disk, point and offset.
    """
    chains = [await disk_chain(repository, document, disk.key) for disk in document.disks]
    total_bytes = sum(
        chain.capacity_bytes + sum(point.disk(chain.disk_key).copied_bytes for point in chain.points)
        for chain in chains
    )
    done_bytes = 0
    for chain in chains:
        for point, path in zip(chain.points, chain.layers, strict=True):
            if wrong := await layers.check_structure(path):
                raise damaged(point.point_id, chain.disk_key, wrong)
        disk_bytes = 0
        async with contextlib.aclosing(_read(chain, run_dir)) as reports:
            async for report in reports:
                disk_bytes = report["read_bytes"]
                yield VerifyProgress(
                    chain.disk_key,
                    min(done_bytes + disk_bytes, total_bytes),
                    total_bytes,
                    bytes.fromhex(report.get("sha256", "")),
                )
        done_bytes += disk_bytes


async def _read(chain: DiskChain, run_dir: Path) -> AsyncGenerator[Report, None]:
    """Reports of the verifier process about one disk."""
    newest = len(chain.layers) - 1
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="v") as scratch:
        ledgers = [str(each) for each in chain.ledgers]
        async with verifier_process(Path(scratch)) as verifier:
            for number, ledger in enumerate(ledgers):
                async with open_view(chain, number, Path(scratch)) as uri:
                    own = verifier.do(do="layer", uri=uri, ledger=ledger)
                    async for report in checked(own, chain, number):
                        yield report
                    if number == newest:
                        whole = verifier.do(do="whole", uri=uri, ledgers=ledgers)
                        async for report in checked(whole, chain, number):
                            yield report


@contextlib.asynccontextmanager
async def open_view(chain: DiskChain, number: int, run_dir: Path) -> AsyncIterator[str]:
    """Serves the view of a layer for reading; its URI. EXPORT_FAILED."""
    export = await open_export(
        chain.layers[number],
        f"v{number}",
        run_dir / "v.sock",
        capacity_bytes=chain.points[number].disk(chain.disk_key).capacity_bytes,
        connections=_CONNECTIONS,
        read_only=True,
    )
    try:
        yield export.uri
    finally:
        await export.stop()


async def checked(
    reports: AsyncGenerator[Report, None], chain: DiskChain, number: int
) -> AsyncGenerator[Report, None]:
    """Reports of the verifier about the view of a layer; a problem is raised as POINT_CORRUPT."""
    async with contextlib.aclosing(reports):
        async for report in reports:
            if report.get("where") == "view":
                point = chain.points[number]
                raise damaged(point.point_id, chain.disk_key, report["problem"], report["offset_bytes"])
            yield report
