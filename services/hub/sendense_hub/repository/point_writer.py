# SPDX-License-Identifier: Apache-2.0
"""Writing one restore point: layers, exports, ledgers, and the commit mark."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir
from sendense_hub.repository import durable, layers, programs
from sendense_hub.repository.document import PointDocument
from sendense_hub.repository.export import Export, open_export
from sendense_hub.repository.layout import DOCUMENT, LayerRef, Repository, unavailable
from sendense_hub.repository.ledger import LedgerWriter, Record, file_sha256

log = logging.getLogger(__name__)


def layer_file(disk_key: int) -> str:
    """Name of a disk's layer."""
    return f"disk-{disk_key}.qcow2"


def ledger_file(disk_key: int) -> str:
    """Name of a disk's ledger."""
    return f"disk-{disk_key}.ledger"


class PointWriter:
    """A point that is being written: ends with `commit`, or with `discard`, which may come at any time."""

    def __init__(self, repository: Repository, directory: str) -> None:
        """Made by `begin`."""
        self.directory = directory
        self._repository = repository
        self._path = repository.point_path(directory)
        self._exports: list[Export] = []
        self._ledgers: dict[int, LedgerWriter] = {}
        self._digests: list[Path] = []
        self._committed = False

    @classmethod
    async def begin(
        cls, repository: Repository, vcenter_uuid: str, vm_uuid: str, point_id: str
    ) -> PointWriter:
        """Makes the point's directory.

        Raises:
            SendenseError: REPOSITORY_UNAVAILABLE, REPOSITORY_FULL.
        """
        writer = cls(repository, repository.directory_of(vcenter_uuid, vm_uuid, point_id))
        try:
            await asyncio.to_thread(private_dir, writer._path)
        except OSError as error:
            raise unavailable(writer._path, error) from error
        return writer

    async def create_layer(self, disk_key: int, capacity_bytes: int, parent: LayerRef | None) -> LayerRef:
        """Makes the layer and the ledger of one disk.

        Args:
            disk_key: the disk.
            capacity_bytes: its exact size.
            parent: what it is built on; None for a full. Its header is checked first.

        Raises:
            SendenseError: POINT_CORRUPT when the parent is not what it should be; REPOSITORY_FULL.
        """
        backing = None
        if parent is not None:
            document = await asyncio.to_thread(self._repository.read_document, parent.directory)
            chain = await asyncio.to_thread(self._repository.chain, document, disk_key)
            await check_chain(self._repository, chain, disk_key)
            backing = f"../{Path(parent.directory).name}/{parent.file}"
        file = layer_file(disk_key)
        await layers.create(self._path / file, capacity_bytes, backing)
        try:
            self._ledgers[disk_key] = LedgerWriter(self._path / ledger_file(disk_key), capacity_bytes)
        except OSError as error:
            raise unavailable(self._path, error) from error
        return LayerRef(self.directory, disk_key, file, capacity_bytes)

    async def open_digests(
        self, parent: LayerRef, export_name: str, socket: Path, connections: int = 1
    ) -> Export:
        """Serves what the parent of a compared layer holds, as digests; the file goes with the export.

        Args:
            parent: what the layer is built on.
            export_name: of the export.
            socket: where.
            connections: see `export.open_export`.

        Raises:
            SendenseError: POINT_CORRUPT when its ledgers or its headers are not what they should be;
                EXPORT_FAILED, REPOSITORY_FULL.
        """
        document = await asyncio.to_thread(self._repository.read_document, parent.directory)
        chain = await asyncio.to_thread(self._repository.chain, document, parent.disk_key)
        output = self._path / f"disk-{parent.disk_key}.digests"
        self._digests.append(output)
        file_bytes = await write_digests(self._repository, chain, parent.disk_key, output, socket)
        export = await open_export(
            output,
            export_name,
            socket,
            capacity_bytes=file_bytes,
            connections=connections,
            read_only=True,
            file_format="raw",
        )
        self._exports.append(export)
        return export

    async def open_export(self, layer: LayerRef, export_name: str, socket: Path, connections: int) -> Export:
        """Serves a layer of this point for writing; see `export.open_export`."""
        export = await open_export(
            self._path / layer.file,
            export_name,
            socket,
            capacity_bytes=layer.capacity_bytes,
            connections=connections,
        )
        self._exports.append(export)
        return export

    @property
    def exports(self) -> Sequence[Export]:
        """That were opened."""
        return self._exports

    async def append(self, disk_key: int, records: Sequence[Record]) -> None:
        """Adds flushed records to a disk's ledger.

        Raises:
            SendenseError: INVALID_REQUEST for a record that cannot be; REPOSITORY_FULL.
        """
        try:
            await asyncio.to_thread(self._ledgers[disk_key].append, records)
        except OSError as error:
            raise unavailable(self._path, error) from error

    async def commit(self, document: PointDocument) -> PointDocument:
        """Stops the exports, makes everything durable, and sets the commit mark.

        Args:
            document: of this point; lengths and digests of ledgers are filled in here.

        Returns:
            What was written.
        """
        await self._stop_exports()
        try:
            committed = await asyncio.to_thread(self._write, document)
        except OSError as error:
            raise unavailable(self._path, error) from error
        self._committed = True
        return committed

    async def discard(self) -> None:
        """Leaves nothing of the point, unless it was committed. Twice is once.

        Raises:
            SendenseError: REPOSITORY_UNAVAILABLE; files may be left.
        """
        await self._stop_exports()
        try:
            for ledger in self._ledgers.values():
                ledger.close()
        except OSError:
            log.warning("a ledger in %s could not be closed; it is removed now", self._path)
        if not self._committed:
            try:
                await asyncio.to_thread(remove_directory, self._path, self._repository.root)
            except OSError as error:
                raise unavailable(self._path, error) from error

    async def _stop_exports(self) -> None:
        await asyncio.gather(*(export.stop() for export in self._exports))

    def _write(self, document: PointDocument) -> PointDocument:
        for path in self._digests:
            path.unlink()
        disks = []
        for disk in document.disks:
            durable.sync_file(self._path / disk.layer_file)
            ledger = self._ledgers[disk.key]
            length_bytes, digest = ledger.sync()
            ledger.close()
            disks.append(dataclasses.replace(disk, ledger_bytes=length_bytes, ledger_sha256=digest.hex()))
        durable.sync_dirs(self._path, up_to=self._repository.root)
        committed = dataclasses.replace(document, disks=tuple(disks))
        durable.write_file(self._path / DOCUMENT, committed.to_json())
        return committed


async def write_digests(
    repository: Repository, chain: Sequence[PointDocument], disk_key: int, output: Path, socket: Path
) -> int:
    """Writes what a chain holds, as digests, by a process of its own; see `digester`.

    Args:
        repository: where it is.
        chain: the full first.
        disk_key: the disk.
        output: the new file.
        socket: for reading the chain meanwhile; it is free again afterwards.

    Returns:
        Size of the file.

    Raises:
        SendenseError: POINT_CORRUPT, EXPORT_FAILED, REPOSITORY_FULL.
    """
    layer_files = await check_chain(repository, chain, disk_key)
    ledgers = []
    for point, path in zip(chain, layer_files, strict=True):
        ledgers.append(await asyncio.to_thread(committed_ledger, path.parent, point, disk_key))
    view = await open_export(
        layer_files[-1],
        "digests",
        socket,
        capacity_bytes=chain[-1].disk(disk_key).capacity_bytes,
        connections=1,
        read_only=True,
    )
    try:
        made = await programs.run(
            sys.executable,
            "-m",
            "sendense_hub.repository.digester",
            view.uri,
            str(output),
            *map(str, ledgers),
        )
    finally:
        await view.stop()
    if made.code:
        raise layers.failed(made, f"what point {chain[-1].point_id} holds could not be written down")
    facts = json.loads(made.output)
    log.info("digests of disk %d of point %s: %s", disk_key, chain[-1].point_id, facts)
    return int(facts["file_bytes"])


def committed_ledger(directory: Path, point: PointDocument, disk_key: int) -> Path:
    """A ledger, if it is the one that was committed; POINT_CORRUPT. Blocks."""
    disk = point.disk(disk_key)
    path = directory / disk.ledger_file
    try:
        same = path.stat().st_size == disk.ledger_bytes and file_sha256(path) == disk.ledger_sha256
    except FileNotFoundError:
        same = False
    if not same:
        raise SendenseError(
            Reason.REASON_POINT_CORRUPT,
            f"disk {disk_key} of point {point.point_id} is damaged: "
            f"its ledger {path} is not the one that was committed",
            remedy="Restore the file from a copy of the repository, or make a new full.",
            point=point.point_id,
            disk=disk_key,
        )
    return path


async def check_chain(repository: Repository, chain: Sequence[PointDocument], disk_key: int) -> list[Path]:
    """Compares every header of a chain with the documents; returns the layers, the full first.

    Raises:
        SendenseError: POINT_CORRUPT.
    """
    paths = []
    backing = ""
    for point in chain:
        disk = point.disk(disk_key)
        path = repository.layer_path(point, disk_key)
        await layers.check_header(path, capacity_bytes=disk.capacity_bytes, backing=backing)
        paths.append(path)
        backing = f"../{point.point_id}/{disk.layer_file}"
    return paths


def remove_directory(path: Path, root: Path) -> None:
    """Removes a point's directory, and those above it that it leaves empty. Blocks; OSError when it stays.

    The commit mark goes first: a crash in between never leaves a mark without the files it speaks of.
    """
    if path.exists():
        with contextlib.suppress(FileNotFoundError):
            (path / DOCUMENT).unlink()
            durable.sync_file(path)
        shutil.rmtree(path)
    for parent in (path.parent, path.parent.parent):
        if parent == root:
            return
        try:
            parent.rmdir()
        except OSError:  # not empty, or gone: then there is nothing to tidy above it either
            break
    durable.sync_dirs(next(each for each in path.parents if each.exists()), up_to=root)
