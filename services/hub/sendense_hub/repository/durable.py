# SPDX-License-Identifier: Apache-2.0
"""Files that are there after a power cut. All of it blocks: call it in a thread."""

from __future__ import annotations

import os
from pathlib import Path


def sync_file(path: Path) -> None:
    """Flushes one file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_dirs(path: Path, *, up_to: Path) -> None:
    """Flushes a directory and its parents up to and including `up_to`: the names in them stay."""
    while True:
        sync_file(path)
        if path in {up_to, path.parent}:
            return
        path = path.parent


def write_file(path: Path, content: bytes) -> None:
    """Puts a whole file in place, or leaves what was there."""
    aside = path.with_name(f".{path.name}.new")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    sync_file(path.parent)
