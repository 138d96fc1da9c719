# SPDX-License-Identifier: Apache-2.0
"""Layers: QCOW2 files, one per disk and point, made and looked at with qemu-img."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.repository import layer_header, programs
from sendense_hub.repository.layout import unavailable

_SECTOR_BYTES = 512
# qemu-img check: what its exit codes say.
_CHECK_FAILED, _CORRUPT, _LEAKED = 1, 2, 3
_CIRCUMSTANCES = (
    *(errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR),
    *(errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO),
)


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


def check_header(path: Path, *, capacity_bytes: int, backing: str) -> str:
    """Compares a layer's header with what it should be, before anything opens its chain. Blocks.

    Args:
        path: the layer.
        capacity_bytes: of the disk.
        backing: relative path of the parent's layer; empty for a full.

    Returns:
        What is wrong with it; empty: nothing.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE: it cannot be looked at, and nothing is known.
    """
    try:
        found = layer_header.read(path)
    except FileNotFoundError:
        return f"its layer {path} is missing"
    except ValueError as error:
        return f"its layer {path} cannot be opened: {error}"
    except OSError as error:
        raise unavailable(path, error) from error
    if found.backing != backing or found.capacity_bytes != capacity_bytes:
        return (
            f"its layer {path} has {found.capacity_bytes} bytes on top of {found.backing or 'nothing'!r}; "
            f"it should have {capacity_bytes} on top of {backing or 'nothing'!r}: somebody changed the file"
        )
    return ""


async def check_structure(path: Path) -> str:
    """Has QEMU check a layer's tables; clusters that are merely leaked are fine.

    Returns:
        What is wrong with them; empty: nothing.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE when the check itself did not work.
    """
    checked = await programs.run("qemu-img", "check", "-q", "-f", "qcow2", str(path))
    if checked.code in (0, _LEAKED):
        return ""
    words = checked.errors or checked.output.decode(errors="replace").strip()
    if checked.code == _CORRUPT or (checked.code == _CHECK_FAILED and not _is_circumstance(words)):
        return f"qemu-img check finds its layer {path} damaged: {words}"
    raise failed(checked, f"qemu-img check of {path} did not work, so nothing is known")


def _is_circumstance(words: str) -> bool:
    """Whether a program failed for reasons that are not in the file: qemu-img check's code 1 has both."""
    return any(os.strerror(number) in words for number in _CIRCUMSTANCES) or "Failed to get" in words


async def mend(path: Path) -> bool:
    """Makes a layer whose qemu-nbd was killed fit to be written again; False when it cannot be.

    What was flushed is there; clusters may be leaked, and are given back. Nobody may have it open. Whatever
    else is wrong with it: it is not part of a point yet, and is made anew.
    """
    checked = await programs.run("qemu-img", "check", "-q", "-f", "qcow2", str(path))
    if checked.code == _LEAKED:
        checked = await programs.run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", str(path))
    return checked.code == 0


def failed(outcome: programs.Outcome, what: str) -> SendenseError:
    """REPOSITORY_FULL or REPOSITORY_UNAVAILABLE, with the program's words."""
    return SendenseError(
        Reason.REASON_REPOSITORY_FULL if outcome.no_space else Reason.REASON_REPOSITORY_UNAVAILABLE,
        f"{what}: {outcome.errors or f'exit code {outcome.code}'}",
        remedy="Make room in the repository." if outcome.no_space else "Check the disk it is on.",
    )
