# SPDX-License-Identifier: Apache-2.0
"""point.json: all there is to know of a restore point, in its own directory. docs/repository-format.md."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

FORMAT_VERSION = 1


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
        """As it is written."""
        values = asdict(self)
        values["nvram"] = base64.b64encode(self.nvram).decode()
        return json.dumps(values, indent=1, ensure_ascii=False, sort_keys=True).encode() + b"\n"

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
            values["disks"] = tuple(DiskDocument(**disk) for disk in values["disks"])
            values["unprotected_disks"] = tuple(values["unprotected_disks"])
            values["nvram"] = base64.b64decode(values["nvram"], validate=True)
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise SendenseError(
                Reason.REASON_POINT_CORRUPT,
                f"{where} cannot be read: {error}",
                remedy="Restore the file from a copy of the repository.",
            ) from error
