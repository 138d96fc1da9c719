# SPDX-License-Identifier: Apache-2.0
"""Whether ledgers are those that were committed: each point says how long its are, and has their SHA-256."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sendense_hub.repository.damage import damaged
from sendense_hub.repository.document import PointDocument
from sendense_hub.repository.layout import Repository, unavailable
from sendense_hub.repository.ledger import file_sha256

_SEEN: dict[Path, tuple[int, int, str]] = {}
"""Of ledgers that were right: size, time of the last change in nanoseconds, SHA-256."""


def check_ledgers(repository: Repository, chain: Sequence[PointDocument], disk_key: int) -> None:
    """Raises POINT_CORRUPT unless each ledger of a chain is the one that was committed. Blocks.

    Read again are only those that look otherwise than the last time: before an incremental, nothing may be
    read that grows with the disk.
    """
    for point in chain:
        committed_ledger(repository.layer_path(point, disk_key).parent, point, disk_key, again=False)


def committed_ledger(directory: Path, point: PointDocument, disk_key: int, *, again: bool = True) -> Path:
    """A ledger, if it is the one that was committed. Blocks.

    Args:
        directory: of the point.
        point: what it says about itself.
        disk_key: the disk.
        again: whether it is read though it was right before and looks the same.

    Raises:
        SendenseError: POINT_CORRUPT, REPOSITORY_UNAVAILABLE.
    """
    disk = point.disk(disk_key)
    path = directory / disk.ledger_file
    try:
        found = path.stat()
        looks = (found.st_size, found.st_mtime_ns, disk.ledger_sha256)
        same = found.st_size == disk.ledger_bytes and (
            (not again and _SEEN.get(path) == looks) or file_sha256(path) == disk.ledger_sha256
        )
    except FileNotFoundError:
        same = False
    except OSError as error:
        raise unavailable(path, error) from error
    if not same:
        _SEEN.pop(path, None)
        raise damaged(point.point_id, disk_key, f"its ledger {path} is not the one that was committed")
    _SEEN[path] = looks
    return path
