# SPDX-License-Identifier: Apache-2.0
"""What is stored is not what was written: the error that says where."""

from __future__ import annotations

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_REMEDY = "Restore the files from a copy of the repository, or use another point; make a new full."


def damaged(point_id: str, disk_key: int | None, what: str, offset_bytes: int | None = None) -> SendenseError:
    """POINT_CORRUPT.

    Args:
        point_id: whose files are damaged; not always the point that was looked at.
        disk_key: the disk; None: all that the point says of itself.
        what: for people.
        offset_bytes: in the disk, where there is one.
    """
    of = f"point {point_id}" if disk_key is None else f"disk {disk_key} of point {point_id}"
    where = "" if offset_bytes is None else f" at byte {offset_bytes}"
    return SendenseError(
        Reason.REASON_POINT_CORRUPT,
        f"{of} is damaged{where}: {what}",
        remedy=_REMEDY,
        point=point_id,
        disk=disk_key,
        offset=offset_bytes,
    )
