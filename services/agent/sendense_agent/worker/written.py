# SPDX-License-Identifier: Apache-2.0
"""What earlier attempts have written, as the hub tells it: in pieces, and again after a stream broke."""

from __future__ import annotations

from collections import defaultdict

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.domain.extents import Extents
from sendense_common.errors import SendenseError, invalid


class WrittenBook:
    """Of all disks of one backup."""

    def __init__(self) -> None:
        self._extents: dict[int, dict[int, Extents]] = defaultdict(dict)
        self._problem: SendenseError | None = None

    def hear(self, message: pb.WrittenExtents) -> None:
        """One piece; one that makes no sense is complained of later, when it is used."""
        numbers = message.extents_bytes
        try:
            heard = Extents(zip(numbers[::2], numbers[1::2], strict=True))
        except ValueError as error:
            self._problem = invalid("written.extents_bytes", str(error))
            return
        eras = self._extents[message.disk_key]
        known = eras.setdefault(message.era, Extents())
        if len(heard) and known.end <= next(iter(heard))[0]:
            for offset, length in heard:
                known.append(offset, length)
        else:
            eras[message.era] = known.union(heard)

    def of(self, disk_key: int) -> dict[int, Extents]:
        """By the numbers of eras.

        Raises:
            SendenseError: INVALID_REQUEST when anything that was heard made no sense.
        """
        if self._problem is not None:
            raise self._problem
        return self._extents.get(disk_key, {})
