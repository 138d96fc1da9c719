# SPDX-License-Identifier: Apache-2.0
"""Proving a restore: every byte of it against what the simulated disk held when the snapshot was made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sendense_lab.guest_images import run_program

_PIECE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Comparison:
    """Of a restored disk with its source."""

    sha256: str
    source_sha256: str
    identical: bool
    """By comparing the bytes; the digests are for people."""


def compare(restored: Path, source: Path) -> Comparison:
    """Reads both whole. Blocks."""
    ours, theirs = hashlib.sha256(), hashlib.sha256()
    same = True
    with restored.open("rb") as left, source.open("rb") as right:
        while True:
            mine, other = left.read(_PIECE_BYTES), right.read(_PIECE_BYTES)
            if not mine and not other:
                break
            ours.update(mine)
            theirs.update(other)
            same = same and mine == other
    return Comparison(ours.hexdigest(), theirs.hexdigest(), same)


async def check_with_stock_tools(layer: Path, source: Path) -> None:
    """`qemu-img check` and `qemu-img compare` of a layer as it lies in the repository.

    Raises:
        LabError: they do not agree with us.
    """
    await run_program("qemu-img", "check", "-q", "-f", "qcow2", str(layer))
    await run_program("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", str(layer), str(source))
