# SPDX-License-Identifier: Apache-2.0
"""Makes restore points the way a job does, with a small NBD client for the mover."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import nbd

from sendense_hub.repository import DiskDocument, LayerRef, PointDocument, PointWriter, Record, Repository
from sendense_hub.repository.ledger import BLOCK_BYTES
from sendense_hub.repository.verifier import pieces

VCENTER, MACHINE = "0b7e6a1c-vcenter", "5029aa-machine"


def write(uri: str, offset: int, data: bytes) -> list[Record]:
    """Writes and flushes data, blocks of zeroes as zeroes; gives the records of it."""
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(uri)
    records = []
    for start, length in pieces(Record(offset, len(data), b"")):
        piece = data[start - offset : start - offset + length]
        if any(piece):
            handle.pwrite(piece, start)
            records.append(Record(start, length, hashlib.sha256(piece).digest()))
        else:
            handle.zero(length, start)
            records.append(Record(start, length, b""))
    handle.flush()
    handle.shutdown()
    return records


async def make_point(
    repository: Repository,
    run: Path,
    writes: Mapping[int, Mapping[int, bytes]],
    *,
    capacities: Mapping[int, int],
    parent: PointDocument | None = None,
) -> PointDocument:
    """A committed point.

    Args:
        writes: by disk key, by offset.
        capacities: by disk key.
        parent: what it is built on.
    """
    point_id = str(uuid.uuid4())
    writer = await PointWriter.begin(repository, VCENTER, MACHINE, point_id)
    try:
        disks = []
        for key, capacity_bytes in capacities.items():
            below = None
            if parent:
                directory = repository.directory_of(VCENTER, MACHINE, parent.point_id)
                below = LayerRef(directory, key, parent.disk(key).layer_file, capacity_bytes)
            layer = await writer.create_layer(key, capacity_bytes, below)
            export = await writer.open_export(layer, f"e-{key}", run / f"{key}.sock", 2)
            copied = 0
            for offset, data in writes.get(key, {}).items():
                records = write(export.uri, offset, data)
                copied += sum(each.length_bytes for each in records if each.sha256)
                await writer.append(key, records)
            disks.append(
                DiskDocument(
                    key=key,
                    label=f"Hard disk {key}",
                    capacity_bytes=capacity_bytes,
                    disk_object_id=f"1-{key}",
                    backing_uuid="",
                    change_id="",
                    mode="incremental" if parent else "full",
                    mode_reason="",
                    layer_file=layer.file,
                    ledger_file=f"disk-{key}.ledger",
                    ledger_bytes=0,
                    ledger_sha256="",
                    copied_bytes=copied,
                    parent_point_id=parent.point_id if parent else "",
                )
            )
        return await writer.commit(
            PointDocument(
                point_id=point_id,
                job_id=str(uuid.uuid4()),
                hub_id="hub",
                vcenter_name="v",
                vcenter_uuid=VCENTER,
                vm_name="web",
                vm_instance_uuid=MACHINE,
                snapshot_time_us=1,
                complete_time_us=2,
                quiesce_result="not_requested",
                disks=tuple(disks),
                nvram=b"\x00nvram",
                vm_config={"name": "wéb"},
            )
        )
    finally:
        await writer.discard()


def patch(image: bytearray, writes: Mapping[int, bytes]) -> bytearray:
    """What a disk holds after the writes."""
    for offset, data in writes.items():
        image[offset : offset + len(data)] = data
    return image


def noise(seed: int, length_bytes: int) -> bytes:
    """Data without zeroes, the same for the same seed."""
    return hashlib.shake_128(seed.to_bytes(4)).digest(length_bytes).replace(b"\0", b"\1")


__all__ = ["BLOCK_BYTES", "MACHINE", "VCENTER", "make_point", "noise", "patch", "write"]
