# SPDX-License-Identifier: Apache-2.0
"""Ledgers: what was written to a layer and flushed, each piece with its SHA-256. docs/repository-format.md.

A file of fixed records, little-endian: offset (8 bytes), length (8), kind (8: 0 zeroes, 1 data), SHA-256 (32,
all zero for zeroes). A data record is at most 1 MiB and does not cross a 1 MiB boundary. A later record
replaces the ones that it overlaps.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

BLOCK_BYTES = 1024 * 1024
RECORD = struct.Struct("<QQQ32s")
_ZEROES, _DATA = 0, 1
_READ_RECORDS = 16_384


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of a disk."""

    offset_bytes: int
    length_bytes: int
    sha256: bytes
    """32 bytes; empty: zeroes."""

    @property
    def end(self) -> int:
        """First byte after it."""
        return self.offset_bytes + self.length_bytes


def check(record: Record, capacity_bytes: int) -> None:
    """Refuses a record that cannot be; INVALID_REQUEST."""
    problem = ""
    if record.offset_bytes < 0 or record.length_bytes <= 0 or record.end > capacity_bytes:
        problem = f"lies outside the disk's {capacity_bytes} bytes"
    elif record.sha256:
        if len(record.sha256) != 32:
            problem = f"has a digest of {len(record.sha256)} bytes"
        elif record.offset_bytes // BLOCK_BYTES != (record.end - 1) // BLOCK_BYTES:
            problem = "crosses a 1 MiB boundary"
    if problem:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"ledger record at {record.offset_bytes} of {record.length_bytes} bytes {problem}",
        )


class LedgerWriter:
    """Appends to one ledger. Blocks: call it in a thread, one call at a time."""

    def __init__(self, path: Path, capacity_bytes: int, *, go_on: bool = False) -> None:
        """Makes the file; or, to `go_on`, opens it and cuts off what a crash left half written.

        Raises:
            OSError: it is there already, or is not.
        """
        self.path = path
        self._capacity_bytes = capacity_bytes
        self._digest = hashlib.sha256()
        if go_on:
            self._file: BinaryIO = path.open("r+b")
            self._file.truncate(whole_bytes(path, capacity_bytes))
            with path.open("rb") as written:
                for block in iter(functools.partial(written.read, BLOCK_BYTES), b""):
                    self._digest.update(block)
            self._file.seek(0, os.SEEK_END)
        else:
            self._file = path.open("xb")

    @property
    def length_bytes(self) -> int:
        """What it has so far."""
        return self._file.tell()

    def append(self, records: Iterable[Record]) -> None:
        """Adds records and makes them durable: from then on a later attempt leaves out what they cover.

        Raises:
            SendenseError: INVALID_REQUEST, and nothing is added, when one of them cannot be.
        """
        packed = bytearray()
        for record in records:
            check(record, self._capacity_bytes)
            kind = _DATA if record.sha256 else _ZEROES
            packed += RECORD.pack(record.offset_bytes, record.length_bytes, kind, record.sha256)
        self._file.write(packed)
        self._digest.update(packed)
        self.sync()

    def sync(self) -> tuple[int, bytes]:
        """Makes it durable; its length in bytes and its SHA-256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell(), self._digest.digest()

    def close(self) -> None:
        """No more records."""
        self._file.close()


def read(path: Path) -> Iterator[Record]:
    """All records in the order in which they were written. Blocks.

    Raises:
        SendenseError: POINT_CORRUPT when the file is not made of whole records.
    """
    with path.open("rb") as file:
        while data := file.read(RECORD.size * _READ_RECORDS):
            if len(data) % RECORD.size:
                raise SendenseError(Reason.REASON_POINT_CORRUPT, f"{path} ends in the middle of a record")
            for offset_bytes, length_bytes, kind, sha256 in RECORD.iter_unpack(data):
                if kind not in (_ZEROES, _DATA):
                    raise SendenseError(
                        Reason.REASON_POINT_CORRUPT, f"{path} has a record of unknown kind {kind}"
                    )
                yield Record(offset_bytes, length_bytes, sha256 if kind == _DATA else b"")


def whole_bytes(path: Path, capacity_bytes: int) -> int:
    """Length of the part of a ledger that can be believed: whole records that can be, up to the first other.

    A power cut may leave a part of a record at the end, or zeroes where the file had grown already. Blocks.
    """
    length_bytes = 0
    with path.open("rb") as file:
        while data := file.read(RECORD.size * _READ_RECORDS):
            for offset_bytes, size, kind, sha256 in RECORD.iter_unpack(
                data[: len(data) // RECORD.size * RECORD.size]
            ):
                if kind not in (_ZEROES, _DATA):
                    return length_bytes
                try:
                    check(Record(offset_bytes, size, sha256 if kind == _DATA else b""), capacity_bytes)
                except SendenseError:
                    return length_bytes
                length_bytes += RECORD.size
    return length_bytes


def file_sha256(path: Path) -> str:
    """Hex digest of a whole file. Blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
