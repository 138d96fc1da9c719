# SPDX-License-Identifier: Apache-2.0
"""What a hub that was killed leaves in a point's directory beside layers and ledgers. All of it blocks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sendense_hub.repository.layout import DOCUMENT
from sendense_hub.repository.owner import OWNER

_SCRATCH = re.compile(
    rf"disk-\d+\.digests|\.parts.*|\.probe.*|\.{re.escape(DOCUMENT)}\.new|\.{re.escape(OWNER)}\.new"
)
_OF_A_DISK = re.compile(r"disk-\d+\.(qcow2|ledger)")


def is_of_half_point(name: str) -> bool:
    """Whether a hub makes files of this name for a point that is not complete."""
    return bool(_OF_A_DISK.fullmatch(name) or _SCRATCH.fullmatch(name)) or name == OWNER


def remove(directory: Path) -> None:
    """Removes it, while nobody writes the point or computes anything for it."""
    for path in list(directory.iterdir()):
        if not _SCRATCH.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
