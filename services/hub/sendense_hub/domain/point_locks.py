# SPDX-License-Identifier: Apache-2.0
"""Who uses a restore point: many may read or build on it, one alone may delete it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError


class PointLocks:
    """Locks that never wait: who comes second is told so. Used from one event loop."""

    def __init__(self) -> None:
        self._readers: Counter[str] = Counter()
        self._deleting: set[str] = set()

    @contextlib.contextmanager
    def reading(self, point_ids: Iterable[str]) -> Iterator[None]:
        """Keeps points from being deleted.

        Raises:
            SendenseError: POINT_BUSY when one of them is.
        """
        mine = sorted(set(point_ids))
        for point_id in mine:
            if point_id in self._deleting:
                raise _busy(point_id, "is being deleted")
        self._readers.update(mine)
        try:
            yield
        finally:
            self._readers.subtract(mine)

    @contextlib.contextmanager
    def deleting(self, point_id: str) -> Iterator[None]:
        """Takes a point for deletion.

        Raises:
            SendenseError: POINT_BUSY when somebody uses it.
        """
        if point_id in self._deleting:
            raise _busy(point_id, "is being deleted")
        if self._readers[point_id] > 0:
            raise _busy(point_id, "is being verified or exported, or a running backup builds on it")
        self._deleting.add(point_id)
        try:
            yield
        finally:
            self._deleting.discard(point_id)


def _busy(point_id: str, why: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_POINT_BUSY,
        f"point {point_id} {why}",
        remedy="Try again when that has ended.",
        retryable=True,
        point=point_id,
    )
