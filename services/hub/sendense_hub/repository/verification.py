# SPDX-License-Identifier: Apache-2.0
"""Checking a restore point: every byte that it would give back, against what was noted when it was made.

Each layer of a disk's chain is compared with its own ledger, as it was seen at its own point; then the newest
view is read whole: what no ledger speaks of must be zeroes, and the rest gives the disk's SHA-256. The bytes
are read by a process of its own (`verifier`), through qemu-nbd, read-only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import process
from sendense_common.errors import SendenseError
from sendense_hub.repository import layers, ledger
from sendense_hub.repository.document import DiskDocument, PointDocument
from sendense_hub.repository.export import open_export
from sendense_hub.repository.layout import Repository
from sendense_hub.repository.point_writer import check_chain

_CONNECTIONS = 2
_GRACE_S = 3.0


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


async def verify_point(
    repository: Repository, document: PointDocument, run_dir: Path
) -> AsyncGenerator[VerifyProgress, None]:
    """Checks all disks of a point.

    Args:
        repository: where it is.
        document: the point.
        run_dir: for sockets.

    Raises:
        SendenseError: POINT_CORRUPT with disk, point and offset.
    """
    chains = {
        disk.key: await asyncio.to_thread(repository.chain, document, disk.key) for disk in document.disks
    }
    total_bytes = sum(disk.capacity_bytes for disk in document.disks)
    for key, chain in chains.items():
        total_bytes += sum(point.disk(key).copied_bytes for point in chain)
    done_bytes = 0
    for key, chain in chains.items():
        paths = await check_chain(repository, chain, key)
        for point, path in zip(chain, paths, strict=True):
            await layers.check_structure(path)
            await asyncio.to_thread(_check_ledger, path.parent, point, point.disk(key))
        disk_bytes = 0
        async with contextlib.aclosing(_read(chain, paths, key, run_dir)) as reports:
            async for report in reports:
                disk_bytes = report["read_bytes"]
                yield VerifyProgress(
                    key,
                    min(done_bytes + disk_bytes, total_bytes),
                    total_bytes,
                    bytes.fromhex(report.get("sha256", "")),
                )
        done_bytes += disk_bytes


def _check_ledger(directory: Path, point: PointDocument, disk: DiskDocument) -> None:
    path = directory / disk.ledger_file
    try:
        length_bytes = path.stat().st_size
    except FileNotFoundError:
        length_bytes = -1
    if length_bytes != disk.ledger_bytes or ledger.file_sha256(path) != disk.ledger_sha256:
        raise _corrupt(point, disk.key, f"its ledger {path} is not the one that was committed")


async def _read(
    chain: list[PointDocument], paths: list[Path], key: int, run_dir: Path
) -> AsyncGenerator[dict[str, Any], None]:
    """Reports of the verifier process about one disk."""
    with tempfile.TemporaryDirectory(dir=run_dir, prefix="v") as sockets:
        async with contextlib.AsyncExitStack() as stack:
            views = []
            for number, (point, path) in enumerate(zip(chain, paths, strict=True)):
                disk = point.disk(key)
                export = await open_export(
                    path,
                    f"v{number}",
                    Path(sockets) / f"{number}.sock",
                    capacity_bytes=disk.capacity_bytes,
                    connections=_CONNECTIONS,
                    read_only=True,
                )
                stack.push_async_callback(export.stop)
                views.append({"uri": export.uri, "ledger": str(path.parent / disk.ledger_file)})
            child = await asyncio.create_subprocess_exec(
                *process.dying_with_parent([sys.executable, "-m", "sendense_hub.repository.verifier"]),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(process.stop, child, grace_s=_GRACE_S)
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps(views).encode() + b"\n")
            child.stdin.close()
            report: dict[str, Any] = {}
            async for line in child.stdout:
                report = json.loads(line)
                if "problem" in report:
                    point = chain[int(report["view"])]
                    raise _corrupt(point, key, str(report["problem"]), report["offset_bytes"])
                yield report
            if await child.wait() or "sha256" not in report:
                raise SendenseError(
                    Reason.REASON_INTERNAL,
                    f"the verifier of disk {key} of point {chain[-1].point_id} ended early",
                    remedy="The log of the hub has its words.",
                )


def _corrupt(point: PointDocument, key: int, what: str, offset_bytes: object = None) -> SendenseError:
    where = "" if offset_bytes is None else f" at byte {offset_bytes}"
    return SendenseError(
        Reason.REASON_POINT_CORRUPT,
        f"disk {key} of point {point.point_id} is damaged{where}: {what}",
        remedy="Restore the files from a copy of the repository, or use another point; make a new full.",
        point=point.point_id,
        disk=key,
        offset=offset_bytes,
    )
