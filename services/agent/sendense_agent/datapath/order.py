# SPDX-License-Identifier: Apache-2.0
"""What one mover is to copy, and its form on the way to the mover's process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sendense_agent.datapath.sources import Source
from sendense_agent.domain.checkpoints import Checkpoints
from sendense_agent.domain.extents import Extents
from sendense_common.tunnel import TunnelConfig


@dataclass(frozen=True)
class CopyOrder:
    """One disk."""

    disk_key: int
    label: str
    capacity_bytes: int
    read: Extents
    """To read from the source: a full's allocated ranges, or an incremental's changed ∩ allocated."""
    zero: Extents
    """To write as zeroes without reading: changed but unallocated. Empty for fulls."""
    source: Source
    tunnel: TunnelConfig
    export_name: str
    """At the hub."""
    local_socket: Path
    """Where the export appears at the site; `nbdinfo` works on it."""
    write_zeroes: bool
    """Whether zeroes that are read must be written: the layer has a parent, or holds data."""
    kept: Extents = field(default_factory=Extents)
    """What the layer holds already. In `read` for a compared disk only, where it is not read all the same."""
    audit: bytes = b""
    """Records of what did not change, to be read as well and compared; see AuditSample. For incrementals."""
    digests_export_name: str = ""
    """At the hub: what the previous point holds. Set when the disk is compared with it."""
    connections: int = 2
    in_flight_bytes: int = 16 * 1024 * 1024
    checkpoint_bytes: int = Checkpoints.bytes
    checkpoint_s: float = Checkpoints.seconds
    traceparent: str = ""
    attempt: int = 0
    """Of the job, for the trace."""
    telemetry_socket: Path | None = None

    @property
    def digests_socket(self) -> Path:
        """Where the export of digests appears at the site."""
        return self.local_socket.with_name(f"{self.local_socket.stem}.d")

    def to_json(self) -> bytes:
        """Everything but the ranges and the audit's records; one line."""
        values: dict[str, Any] = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in {"read", "zero", "kept", "audit", "source", "tunnel"}
        }
        values["source"] = vars(self.source)
        values["tunnel"] = vars(self.tunnel)
        return json.dumps(values, default=str).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes, read: Extents, zero: Extents, kept: Extents, audit: bytes) -> CopyOrder:
        """What `to_json` gave, with the rest."""
        values = json.loads(line)
        source, tunnel = values.pop("source"), values.pop("tunnel")
        source["socket"] = Path(source["socket"])
        tunnel["private_key_file"] = Path(tunnel["private_key_file"])
        values["local_socket"] = Path(values["local_socket"])
        if values["telemetry_socket"]:
            values["telemetry_socket"] = Path(values["telemetry_socket"])
        return cls(
            **values,
            read=read,
            zero=zero,
            kept=kept,
            audit=audit,
            source=Source(**source),
            tunnel=TunnelConfig(**tunnel),
        )
