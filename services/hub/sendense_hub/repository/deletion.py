# SPDX-License-Identifier: Apache-2.0
"""Deleting a restore point's files: a crash in between leaves what is plainly being deleted."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

from sendense_hub.repository import durable
from sendense_hub.repository.layout import DELETING, DOCUMENT, Repository, unavailable

_BLOCK_BYTES = 512


async def delete_point(repository: Repository, directory: str) -> int:
    """Takes the commit mark away, then the files; returns the space given back in bytes. Can be repeated.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE.
    """
    return await asyncio.to_thread(_delete, repository, repository.point_path(directory))


def stored_bytes(path: Path) -> int:
    """Space that a file takes; 0 when it is gone. Blocks."""
    try:
        return path.stat().st_blocks * _BLOCK_BYTES
    except FileNotFoundError:
        return 0


def remove_directory(path: Path, root: Path) -> None:
    """Removes a point's directory, and those above it that it leaves empty. Blocks; OSError when it stays.

    The commit mark goes first: a crash in between never leaves a mark without the files it speaks of.
    """
    if path.exists():
        with contextlib.suppress(FileNotFoundError):
            (path / DOCUMENT).unlink()
            durable.sync_file(path)
        shutil.rmtree(path)
    for parent in (path.parent, path.parent.parent):
        if parent == root:
            return
        try:
            parent.rmdir()
        except OSError:  # not empty, or gone: then there is nothing to tidy above it either
            break
    durable.sync_dirs(next(each for each in path.parents if each.exists()), up_to=root)


def _delete(repository: Repository, path: Path) -> int:
    repository.space()  # an unmounted repository must not look like a deleted point
    if not path.exists():
        return 0
    try:
        with contextlib.suppress(FileNotFoundError):
            (path / DOCUMENT).rename(path / DELETING)
        durable.sync_file(path)
        freed_bytes = sum(stored_bytes(file) for file in path.iterdir())
        for file in path.iterdir():
            if file.name != DELETING and not file.is_dir():
                file.unlink()
        durable.sync_file(path)
        remove_directory(path, repository.root)
    except OSError as error:
        raise unavailable(path, error) from error
    return freed_bytes
