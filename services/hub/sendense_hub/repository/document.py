# SPDX-License-Identifier: Apache-2.0
"""point.json: all there is to know of a restore point, in its own directory. docs/repository-format.md."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

FORMAT_VERSION = 1
# The line as it is while the digest is computed; strings of JSON hold no line ends, so there is one of it.
_NO_DIGEST = b'\n "content_sha256": ""'


@dataclass(frozen=True)
class DiskDocument:
    """One disk of a point."""

    key: int
    label: str
    capacity_bytes: int
    disk_object_id: str
    backing_uuid: str
    change_id: str
    """Empty: none."""
    mode: str
    """"full", "incremental" or "compared"."""
    mode_reason: str
    layer_file: str
    ledger_file: str
    ledger_bytes: int
    ledger_sha256: str
    """Hex, of the ledger file."""
    copied_bytes: int
    parent_point_id: str = ""
    """Empty for a full; else a point in the same VM's directory."""


@dataclass(frozen=True)
class PointDocument:
    """A restore point."""

    point_id: str
    job_id: str
    hub_id: str
    vcenter_name: str
    vcenter_uuid: str
    vm_name: str
    vm_instance_uuid: str
    snapshot_time_us: int
    complete_time_us: int
    quiesce_result: str
    disks: tuple[DiskDocument, ...]
    unprotected_disks: tuple[str, ...] = ()
    vm_config: Any = None
    """The VM's configuration as JSON values."""
    nvram: bytes = b""
    format_version: int = field(default=FORMAT_VERSION)

    def disk(self, key: int) -> DiskDocument:
        """One disk; DISK_NOT_FOUND."""
        for disk in self.disks:
            if disk.key == key:
                return disk
        raise SendenseError(
            Reason.REASON_DISK_NOT_FOUND,
            f"point {self.point_id} has no disk {key}",
            remedy="It has " + ", ".join(f"{disk.key} ({disk.label})" for disk in self.disks) + ".",
            point=self.point_id,
            disk=key,
        )

    def to_json(self) -> bytes:
        """As it is written, with a digest of all of it."""
        values = {**asdict(self), "content_sha256": ""}
        values["nvram"] = base64.b64encode(self.nvram).decode()
        text = json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"
        digest = hashlib.sha256(text).hexdigest().encode()
        return text.replace(_NO_DIGEST, _NO_DIGEST.replace(b'""', b'"%b"' % digest), 1)

    @classmethod
    def from_json(cls, text: bytes, *, where: str) -> PointDocument:
        """As it was written.

        Args:
            text: the file.
            where: its path, for errors.

        Raises:
            SendenseError: POINT_CORRUPT.
        """
        try:
            values = json.loads(text)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version}, this hub reads {FORMAT_VERSION}")
            _check_digest(text, values.pop("content_sha256", None))
            values["disks"] = tuple(DiskDocument(**disk) for disk in values["disks"])
            for disk in values["disks"]:
                _check_name(disk.layer_file)
                _check_name(disk.ledger_file)
            values["unprotected_disks"] = tuple(values["unprotected_disks"])
            values["nvram"] = base64.b64decode(values["nvram"], validate=True)
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise SendenseError(
                Reason.REASON_POINT_CORRUPT,
                f"{where} cannot be read: {error}",
                remedy="Restore the file from a copy of the repository.",
            ) from error


def _check_digest(text: bytes, digest: object) -> None:
    """Points that were made before there was one have none."""
    if digest is None:
        return
    written = _NO_DIGEST.replace(b'""', b'"%b"' % str(digest).encode())
    if hashlib.sha256(text.replace(written, _NO_DIGEST, 1)).hexdigest() != digest:
        raise ValueError("its content is not what content_sha256 says, so somebody or something changed it")


def _check_name(name: object) -> None:
    """A file of the point's own directory, nothing else."""
    if not isinstance(name, str) or not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is not a file in the same directory")
