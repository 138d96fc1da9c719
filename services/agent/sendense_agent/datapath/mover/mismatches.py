# SPDX-License-Identifier: Apache-2.0
"""What an audit found to be otherwise than in the previous point."""

from __future__ import annotations

from collections.abc import Callable

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.datapath.mover.comparing import Work

_MOST_IN_ONE = 1000


class Mismatches:
    """Of one disk. The first is told at once, so that it is not lost; the others when all is over."""

    def __init__(self, disk_key: int, tell: Callable[[pb.RunBackupResponse], None]) -> None:
        self._disk_key = disk_key
        self._tell_one = tell
        self._untold: list[tuple[int, int]] = []
        self.count = 0
        """Ranges so far."""

    def note(self, item: Work, parts: list[tuple[int, int, bool]]) -> None:
        """Takes what differs in a piece.

        Args:
            item: of an audit; it is not what the previous point has, or has not been looked at for zeroes.
            parts: (start within it, length, whether it is zeroes): what was read.
        """
        if item.sha256:
            found = [(item.offset, item.length)]
        else:
            found = [(item.offset + start, size) for start, size, zero in parts if not zero]
        first = bool(found) and not self.count
        self.count += len(found)
        self._untold += found
        if first:
            self.tell()

    def tell(self) -> None:
        """Tells of all that was not told of."""
        found, self._untold = sorted(self._untold), []
        for start in range(0, len(found), _MOST_IN_ONE):
            numbers = [number for each in found[start : start + _MOST_IN_ONE] for number in each]
            told = pb.AuditMismatch(disk_key=self._disk_key, extents_bytes=numbers)
            self._tell_one(pb.RunBackupResponse(audit_mismatch=told))
