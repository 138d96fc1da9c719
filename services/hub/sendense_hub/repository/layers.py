# SPDX-License-Identifier: Apache-2.0
"""Layers: QCOW2 files, one per disk and point, made and looked at with qemu-img."""

from __future__ import annotations

import json
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import programs

_SECTOR_BYTES = 512
# qemu-img check: what its exit codes say.
_CHECK_FAILED, _CORRUPT, _LEAKED = 1, 2, 3


async def create(path: Path, capacity_bytes: int, backing: str | None) -> None:
    """Makes an empty layer.

    Args:
        path: the new file; must not exist.
        capacity_bytes: exact size of the disk, a multiple of 512.
        backing: path of the parent's layer relative to the new file's directory; None for a full.

    Raises:
        SendenseError: REPOSITORY_FULL or REPOSITORY_UNAVAILABLE.
    """
    if capacity_bytes <= 0 or capacity_bytes % _SECTOR_BYTES:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST, f"a disk of {capacity_bytes} bytes has no whole sectors"
        )
    if path.exists():
        raise SendenseError(Reason.REASON_REPOSITORY_UNAVAILABLE, f"{path} exists already")
    options = ["-o", "compat=1.1"]
    if backing is not None:
        options += ["-b", backing, "-F", "qcow2"]
    made = await programs.run(
        "qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), str(capacity_bytes)
    )
    if made.code:
        raise failed(made, f"the layer {path} could not be made")


async def check_header(path: Path, *, capacity_bytes: int, backing: str) -> None:
    """Compares a layer's header with what it should be, before anything opens its chain.

    Args:
        path: the layer.
        capacity_bytes: of the disk.
        backing: relative path of the parent's layer; empty for a full.

    Raises:
        SendenseError: POINT_CORRUPT.
    """
    looked = await programs.run("qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(path))
    if looked.code:
        raise SendenseError(
            Reason.REASON_POINT_CORRUPT,
            f"the layer {path} cannot be opened: {looked.errors}",
            remedy="Restore the file from a copy of the repository.",
        )
    facts = json.loads(looked.output)
    found = facts.get("backing-filename", "")
    if found != backing or facts["virtual-size"] != capacity_bytes:
        raise SendenseError(
            Reason.REASON_POINT_CORRUPT,
            f"the layer {path} has {facts['virtual-size']} bytes on top of {found or 'nothing'!r}; "
            f"it should have {capacity_bytes} on top of {backing or 'nothing'!r}",
            remedy="Somebody changed the file. Restore it from a copy of the repository.",
        )


async def check_structure(path: Path) -> None:
    """Has QEMU check a layer's tables; clusters that are merely leaked are fine. POINT_CORRUPT."""
    checked = await programs.run("qemu-img", "check", "-q", "-f", "qcow2", str(path))
    if checked.code in (_CHECK_FAILED, _CORRUPT):
        raise SendenseError(
            Reason.REASON_POINT_CORRUPT,
            f"qemu-img check finds {path} damaged: {checked.errors or checked.output.decode()}",
            remedy="Restore the file from a copy of the repository.",
        )
    if checked.code not in (0, _LEAKED):
        raise failed(checked, f"qemu-img check of {path} did not work")


def failed(outcome: programs.Outcome, what: str) -> SendenseError:
    """REPOSITORY_FULL or REPOSITORY_UNAVAILABLE, with the program's words."""
    return SendenseError(
        Reason.REASON_REPOSITORY_FULL if outcome.no_space else Reason.REASON_REPOSITORY_UNAVAILABLE,
        f"{what}: {outcome.errors or f'exit code {outcome.code}'}",
        remedy="Make room in the repository." if outcome.no_space else "Check the disk it is on.",
    )
