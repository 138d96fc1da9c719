# SPDX-License-Identifier: Apache-2.0
"""Files with private keys: made whole, for this user alone, refused if others may read."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir


def create_private_file(path: Path, data: bytes) -> bool:
    """Makes `path` with mode 0600, complete and on disk, or not at all; its directory is made if missing.

    Returns:
        Whether it was made; False when something is there already, which then stays as it is.
    """
    private_dir(path.parent)
    hidden = _hidden(path)
    try:
        _write(hidden, data)
        try:
            # Not rename: that would replace what another process made in the meantime.
            path.hardlink_to(hidden)
        except FileExistsError:
            return False
    finally:
        hidden.unlink(missing_ok=True)
    _sync_directory(path.parent)
    return True


def replace_private_file(path: Path, data: bytes) -> None:
    """Puts a file with mode 0600 in the place of the one at `path`; at any moment one of the two is whole.

    The new one is on disk when this returns. Raises OSError, and then the old one is there.
    """
    hidden = _hidden(path)
    try:
        _write(hidden, data)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    _sync_directory(path.parent)


def read_private_file(path: Path) -> bytes:
    """What is in `path`.

    Raises:
        FileNotFoundError: it is not there.
        SendenseError: INTERNAL when others than its owner may read or write it.
    """
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise SendenseError(
                Reason.REASON_INTERNAL,
                f"{path} holds a private key and others may open it (mode {mode:04o})",
                remedy=f"Find out who could have read it; then: chmod 600 {path}",
            )
        return file.read()


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _write(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
