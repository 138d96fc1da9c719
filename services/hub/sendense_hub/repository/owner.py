# SPDX-License-Identifier: Apache-2.0
"""Whose a half point is: a small file in its directory, from its beginning until its commit mark.

A catalog knows of each point that is being written, so this is only looked at where no catalog does: a half
point that cannot be proved to be of an ended job of one's own may be another hub's, and is left alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sendense_hub.repository import durable

OWNER = ".writing"


@dataclass(frozen=True)
class Owner:
    """Who writes a point."""

    hub_id: str
    job_id: str


def write(directory: Path, owner: Owner) -> None:
    """Says so. Blocks."""
    durable.write_file(directory / OWNER, json.dumps(asdict(owner)).encode() + b"\n")


def read(directory: Path) -> Owner | None:
    """Who says so; None when nobody does, or it cannot be understood. Blocks."""
    try:
        facts = json.loads((directory / OWNER).read_bytes())
        found = Owner(**facts)
    except (OSError, ValueError, TypeError):
        return None
    return found if isinstance(found.hub_id, str) and isinstance(found.job_id, str) else None


def remove(directory: Path) -> None:
    """The point is about to be complete. Blocks; the caller flushes the directory."""
    (directory / OWNER).unlink(missing_ok=True)
