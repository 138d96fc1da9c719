# SPDX-License-Identifier: Apache-2.0
"""What a job works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog
from sendense_hub.domain.point_locks import PointLocks
from sendense_hub.jobs.board import Board
from sendense_hub.jobs.exports import ExportTable
from sendense_hub.jobs.guarded_sites import GuardedSites
from sendense_hub.repository import AuditPolicy, PartFiles, Repository

LONGEST_CHAIN = 200


@dataclass(frozen=True)
class Workshop:
    """One hub's."""

    catalog: Catalog
    board: Board
    sites: GuardedSites
    exports: ExportTable
    locks: PointLocks
    repositories: Mapping[str, Repository]
    exports_dir: Path
    """For the sockets of qemu-nbd."""
    parts: PartFiles
    """Of disks that are exported to files."""
    audit: AuditPolicy = field(default_factory=AuditPolicy)
    """How much of what did not change is read again."""
    longest_chain: int = LONGEST_CHAIN
    """Layers of a disk that are built on each other, at most; the next backup of it is a full."""

    def repository(self, name: str) -> Repository:
        """One by its name; REPOSITORY_NOT_FOUND."""
        try:
            return self.repositories[name]
        except KeyError:
            raise SendenseError(
                Reason.REASON_REPOSITORY_NOT_FOUND,
                f"there is no repository {name!r}",
                remedy="There is: " + ", ".join(sorted(self.repositories)) + ".",
                repository=name,
            ) from None
