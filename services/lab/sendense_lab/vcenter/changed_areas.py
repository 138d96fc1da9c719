# SPDX-License-Identifier: Apache-2.0
"""What QueryChangedDiskAreas answers, and how it can be made to answer what it must not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from sendense_lab.vcenter.disk import GRANULE_BYTES, areas
from sendense_lab.vcenter.soap import invalid_argument

_CHANGE_ID = re.compile(r"(.+)/(\d+)")

_Areas = list[tuple[int, int]]
_Answer = tuple[int, int, _Areas]
"""Start and length of a page, and its areas."""


@dataclass(frozen=True)
class Frozen:
    """What change tracking knew of a disk at a snapshot."""

    tracking_id: str
    epoch: int
    allocated: set[int]
    written_in: dict[int, int]
    """By granule: the epoch in which it was last written."""


@dataclass
class AreaSettings:
    """How answers are cut, and what is wrong with them."""

    areas_per_page: int = 2000
    """Extents in one answer."""
    window_bytes: int = 0
    """Bytes that one answer speaks of at most; 0: no limit. Some answers are empty then."""
    used_areas: bool = True
    """Whether the datastore can tell used areas ("*")."""
    used_areas_whole: bool = False
    """Whether it tells of a whole disk that it is in use, in one extent."""
    areas_left_out: int = 0
    """Of the last extents of each answer, so many are not told of: it looks right, and is not."""
    areas_wrong: str = ""
    """A name in `WRONG`; empty: nothing is wrong."""


WRONG: dict[str, Callable[[_Answer], _Answer]] = {
    "elsewhere": lambda page: (page[0] + GRANULE_BYTES, page[1], page[2]),
    "no_length": lambda page: (page[0], 0, []),
    "beyond_end": lambda page: (page[0], page[1] + GRANULE_BYTES, page[2]),
    "outside_page": lambda page: (page[0], page[1], [*page[2], (page[0] + page[1], GRANULE_BYTES)]),
    "empty_area": lambda page: (page[0], page[1], [(page[0], 0), *page[2]]),
    "out_of_order": lambda page: (page[0], page[1], page[2][::-1]),
    "twice": lambda page: (page[0], page[1], [*page[2], *page[2]]),
}


def page(
    settings: AreaSettings,
    frozen: Frozen | None,
    capacity_bytes: int,
    start_bytes: int,
    change_id: str,
    file_fault: Any,
) -> Any:
    """One answer.

    Args:
        settings: how it is cut.
        frozen: of the disk in the snapshot; None: changes were not tracked then.
        capacity_bytes: of the disk.
        start_bytes: where the answer begins.
        change_id: since when; "*" for what is in use.
        file_fault: what is raised when changes cannot be told.
    """
    if not 0 <= start_bytes < capacity_bytes:
        raise invalid_argument("startOffset")
    if frozen is None:
        raise file_fault
    if change_id == "*":
        if not settings.used_areas:
            raise file_fault
        granules = (
            set(range(-(-capacity_bytes // GRANULE_BYTES))) if settings.used_areas_whole else frozen.allocated
        )
    else:
        granules = _since(frozen, change_id, file_fault)
    end = capacity_bytes
    if settings.window_bytes:
        end = min(end, start_bytes + settings.window_bytes)
    found = areas(granules, end, start_bytes)
    if len(found) > settings.areas_per_page:
        found = found[: settings.areas_per_page]
        end = sum(found[-1])
    if settings.areas_left_out:
        found = found[: -settings.areas_left_out]
    answer = start_bytes, end - start_bytes, found
    if settings.areas_wrong:
        answer = WRONG[settings.areas_wrong](answer)
    info = vim.VirtualMachine.DiskChangeInfo
    return info(
        startOffset=answer[0],
        length=answer[1],
        changedArea=[info.DiskChangeExtent(start=start, length=length) for start, length in answer[2]],
    )


def _since(frozen: Frozen, change_id: str, file_fault: Any) -> set[int]:
    parts = _CHANGE_ID.fullmatch(change_id)
    if parts is None:
        raise invalid_argument("changeId")
    if parts[1] != frozen.tracking_id or int(parts[2]) > frozen.epoch:
        raise file_fault
    return {granule for granule, epoch in frozen.written_in.items() if epoch >= int(parts[2])}
