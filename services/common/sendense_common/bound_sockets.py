# SPDX-License-Identifier: Apache-2.0
"""Which unix sockets somebody listens on, by their names in the file system: what the kernel says (Linux).

A socket's file outlives whoever made it. Asking by connecting would disturb the listener; this does not.
"""

from __future__ import annotations

import re
from pathlib import Path

_COLUMNS = 7
# How a published socket was called when it was bound; see `tunnel/_published_socket`.
_HIDDEN = re.compile(r"\.(?P<name>.+)\.\d+\.\d+")


def bound_in(directory: Path) -> dict[str, int]:
    """Names in a directory under which a socket is bound or published, with the sockets' inodes. Blocks."""
    found = {}
    for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        columns = line.split(maxsplit=_COLUMNS)
        if len(columns) <= _COLUMNS:
            continue  # it has no name
        path = Path(columns[_COLUMNS])
        if path.parent == directory:
            hidden = _HIDDEN.fullmatch(path.name)
            found[path.name] = int(columns[_COLUMNS - 1])
            if hidden:
                found[hidden["name"]] = int(columns[_COLUMNS - 1])
    return found


def sockets_of(pid: int) -> set[int]:
    """Inodes of the sockets that a process of this user has open. Blocks."""
    found = set()
    try:
        for entry in (Path("/proc") / str(pid) / "fd").iterdir():
            target = str(entry.readlink())
            if target.startswith("socket:["):
                found.add(int(target[len("socket:[") : -1]))
    except OSError:  # it has ended, or may not be looked into
        return found
    return found
