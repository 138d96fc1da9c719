# SPDX-License-Identifier: Apache-2.0
"""What a job works with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog
from sendense_hub.domain.point_locks import PointLocks
from sendense_hub.jobs.board import Board
from sendense_hub.jobs.exports import ExportTable
from sendense_hub.jobs.guarded_sites import GuardedSites
from sendense_hub.repository import Repository


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
