# SPDX-License-Identifier: Apache-2.0
"""Writing one restore point: layers, exports, ledgers, and the commit mark."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir
from sendense_hub.repository import coverage, durable, layers, owner, programs, scratch, writers
from sendense_hub.repository.committed_ledgers import committed_ledger
from sendense_hub.repository.coverage import Coverage
from sendense_hub.repository.damage import damaged
from sendense_hub.repository.deletion import remove_directory
from sendense_hub.repository.document import PointDocument
from sendense_hub.repository.export import Export, open_export
from sendense_hub.repository.layout import DOCUMENT, LayerRef, Repository, unavailable
from sendense_hub.repository.ledger import LedgerWriter, Record
from sendense_hub.repository.owner import Owner

log = logging.getLogger(__name__)


def layer_file(disk_key: int) -> str:
    """Name of a disk's layer."""
    return f"disk-{disk_key}.qcow2"


def ledger_file(disk_key: int) -> str:
    """Name of a disk's ledger."""
    return f"disk-{disk_key}.ledger"


class PointWriter:
    """A point that is being written; ends with `commit`, `suspend` or, at any time, `discard`."""

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
        cls,
        repository: Repository,
        vcenter_uuid: str,
        vm_uuid: str,
        point_id: str,
        writing: Owner | None = None,
    ) -> PointWriter:
        """Makes the point's directory, or goes on with it: what a killed hub left aside there goes.

        Args:
            repository: where.
            vcenter_uuid: of the VM's vCenter.
            vm_uuid: of the VM.
            point_id: of the point.
            writing: who it is until the point is complete.

        Raises:
            SendenseError: REPOSITORY_UNAVAILABLE, REPOSITORY_FULL; INTERNAL for a point that is complete.
        """
        writer = cls(repository, repository.directory_of(vcenter_uuid, vm_uuid, point_id))
        try:
            if await asyncio.to_thread(repository.has_mark, writer.directory):
                raise SendenseError(
                    Reason.REASON_INTERNAL,
                    f"{writer._path} is a complete point, which is never written again",
                    point=point_id,
                )
            await asyncio.to_thread(writer._prepare, writing)
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
        backing = await self._backing(parent, disk_key)
        file = layer_file(disk_key)
        try:
            # A ledger beside a new layer would claim what the layer does not hold.
            if any((self._path / name).exists() for name in (file, ledger_file(disk_key))):
                await self.drop_layer(disk_key)
            await layers.create(self._path / file, capacity_bytes, backing)
            self._ledgers[disk_key] = LedgerWriter(self._path / ledger_file(disk_key), capacity_bytes)
            await asyncio.to_thread(self._sync_new, file)
        except OSError as error:
            raise unavailable(self._path, error) from error
        return LayerRef(self.directory, disk_key, file, capacity_bytes)

    async def go_on_with_layer(
        self, disk_key: int, capacity_bytes: int, parent: LayerRef | None
    ) -> LayerRef | None:
        """Opens the layer and the ledger that an earlier attempt wrote; None when they cannot be used.

        Whoever wrote them is proved gone first.

        Args:
            disk_key: the disk.
            capacity_bytes: its exact size.
            parent: what it is built on.

        Raises:
            SendenseError: POINT_CORRUPT when the parent is not what it should be; EXPORT_FAILED when the old
                writer does not end.
        """
        path = self._path / layer_file(disk_key)
        if not path.exists():
            return None
        await writers.end_others(path)
        backing = await self._backing(parent, disk_key)
        try:
            wrong = await asyncio.to_thread(
                layers.check_header, path, capacity_bytes=capacity_bytes, backing=backing or ""
            )
            if wrong or not await layers.mend(path):
                log.warning("the layer %s cannot be gone on with, its disk is copied anew: %s", path, wrong)
                return None
            ledger = await asyncio.to_thread(
                LedgerWriter, self._path / ledger_file(disk_key), capacity_bytes, go_on=True
            )
            if not ledger.length_bytes:  # then the layer may hold anything, and there is nothing to gain
                ledger.close()
                return None
            self._ledgers[disk_key] = ledger
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unavailable(self._path, error) from error
        except SendenseError as error:
            if error.reason != Reason.REASON_POINT_CORRUPT:
                raise
            log.warning("an earlier attempt's layer cannot be used: %s", error)
            return None
        return LayerRef(self.directory, disk_key, path.name, capacity_bytes)

    async def drop_layer(self, disk_key: int) -> None:
        """Removes what an earlier attempt wrote of a disk that there is no more."""
        path = self._path / layer_file(disk_key)
        await writers.end_others(path)
        try:
            await asyncio.to_thread(self._remove_layer, disk_key)
        except OSError as error:
            raise unavailable(path, error) from error

    async def data_bytes(self, disk_key: int) -> int:
        """Data that an earlier attempt's ledger speaks of."""
        path = self._path / ledger_file(disk_key)
        if not path.exists():
            return 0
        return (await asyncio.to_thread(coverage.of_ledger, path, 0, path.stat().st_size)).data_bytes

    def ledger_bytes(self, disk_key: int) -> int:
        """How long a disk's ledger is."""
        return self._ledgers[disk_key].length_bytes

    async def coverage(self, disk_key: int, first_byte: int, end_byte: int) -> Coverage:
        """What the records between two positions of a disk's ledger cover."""
        path = self._path / ledger_file(disk_key)
        return await asyncio.to_thread(coverage.of_ledger, path, first_byte, end_byte)

    async def _backing(self, parent: LayerRef | None, disk_key: int) -> str | None:
        """Path of a parent's layer as headers have it, when its chain is whole."""
        if parent is None:
            return None
        document = await asyncio.to_thread(self._repository.read_document, parent.directory)
        chain = await asyncio.to_thread(self._repository.chain, document, disk_key)
        await check_chain(self._repository, chain, disk_key)
        return f"../{Path(parent.directory).name}/{parent.file}"

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

    async def suspend(self) -> None:
        """Ends the exports, and leaves layers and ledgers to a later attempt. Twice is once."""
        await self._stop_exports()
        self._close_ledgers()
        for path in self._digests:
            path.unlink(missing_ok=True)

    async def discard(self) -> None:
        """Leaves nothing of the point, unless it was committed. Twice is once.

        Raises:
            SendenseError: REPOSITORY_UNAVAILABLE; files may be left.
        """
        await self._stop_exports()
        self._close_ledgers()
        if not self._committed:
            try:
                await asyncio.to_thread(remove_directory, self._path, self._repository.root)
            except OSError as error:
                raise unavailable(self._path, error) from error

    def _prepare(self, writing: Owner | None) -> None:
        private_dir(self._path)
        scratch.remove(self._path)
        if writing is not None:
            owner.write(self._path, writing)

    def _close_ledgers(self) -> None:
        for ledger in self._ledgers.values():
            try:
                ledger.close()
            except OSError:
                log.warning("the ledger %s could not be closed", ledger.path)

    def _remove_layer(self, disk_key: int) -> None:
        """Wherever it is cut off, no ledger is left without its layer."""
        for name in (ledger_file(disk_key), layer_file(disk_key)):
            (self._path / name).unlink(missing_ok=True)
            durable.sync_file(self._path)

    def _sync_new(self, file: str) -> None:
        """A checkpoint must not speak of a layer that a power cut takes away."""
        durable.sync_file(self._path / file)
        durable.sync_dirs(self._path, up_to=self._repository.root)

    async def _stop_exports(self) -> None:
        await asyncio.gather(*(export.stop() for export in self._exports))

    def _write(self, document: PointDocument) -> PointDocument:
        disks = []
        for disk in document.disks:
            durable.sync_file(self._path / disk.layer_file)
            ledger = self._ledgers[disk.key]
            length_bytes, digest = ledger.sync()
            ledger.close()
            disks.append(dataclasses.replace(disk, ledger_bytes=length_bytes, ledger_sha256=digest.hex()))
        # Before the mark: a complete point holds nothing else, and until then the catalog knows whose it is.
        scratch.remove(self._path)
        owner.remove(self._path)
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
        wrong = await asyncio.to_thread(
            layers.check_header, path, capacity_bytes=disk.capacity_bytes, backing=backing
        )
        if wrong:
            raise damaged(point.point_id, disk_key, wrong)
        paths.append(path)
        backing = f"../{point.point_id}/{disk.layer_file}"
    return paths
