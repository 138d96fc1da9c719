# SPDX-License-Identifier: Apache-2.0
"""Files that are being written in places of others: a hub that is killed leaves none of them for good.

Before one is made, a symbolic link to it is put into a directory of the hub's. Its next life follows them.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_NAME = re.compile(r"\..*\.[0-9a-f]{8}\.part", re.DOTALL)
# What is not there now may be on something that is mounted later.
_FORGOTTEN_AFTER_S = 30 * 24 * 3600.0


class PartFiles:
    """One hub's; no other process uses the directory."""

    def __init__(self, notes: Path) -> None:
        """Args: notes: the directory of the links; made when it is needed."""
        self._notes = notes
        self._open: set[Path] = set()

    @contextlib.contextmanager
    def beside(self, output: Path) -> Iterator[Path]:
        """A new empty file, which is gone when the block ends.

        Raises:
            OSError: it cannot be made.
            SendenseError: SERVICE_UNAVAILABLE, it cannot be noted.
        """
        part = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.part")
        note = self._notes / uuid.uuid4().hex
        self._open.add(note)
        try:
            self._write(note, part)
            try:
                part.touch(mode=0o600, exist_ok=False)
            except OSError:
                note.unlink(missing_ok=True)
                raise
            try:
                yield part
            finally:
                part.unlink(missing_ok=True)  # if that fails, the note stays
                note.unlink(missing_ok=True)
        finally:
            self._open.discard(note)

    def remove_left(self) -> tuple[list[Path], list[OSError]]:
        """Removes what earlier lives of the hub have left; what was removed, and what could not be."""
        removed, failed = [], []
        for note in sorted(self._notes.iterdir()) if self._notes.exists() else []:
            if note in self._open or not note.is_symlink():
                continue
            try:
                part = note.readlink()
                if part.is_symlink() or not _NAME.fullmatch(part.name):
                    note.unlink()  # nothing of ours
                elif part.is_file():
                    part.unlink()
                    removed.append(part)
                    note.unlink()
                elif time.time() - note.lstat().st_mtime > _FORGOTTEN_AFTER_S:
                    note.unlink()
            except FileNotFoundError:
                continue  # it has just ended
            except OSError as error:
                failed.append(error)
        return removed, failed

    def _write(self, note: Path, part: Path) -> None:
        try:
            self._notes.mkdir(mode=0o700, exist_ok=True)
            note.symlink_to(part)
        except OSError as error:
            raise SendenseError(
                Reason.REASON_SERVICE_UNAVAILABLE,
                f"the hub cannot write to {self._notes}: {error.strerror}",
                remedy="Make room there, or mend it, and try again.",
                retryable=True,
            ) from error
