# SPDX-License-Identifier: Apache-2.0
"""What exports have left that this hub does not know any more: qemu-nbd, sockets, half written files."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from sendense_common.acts import Act, Outcome
from sendense_hub.repository import PartFiles, export, writers


async def end(exports_dir: Path) -> list[Act]:
    """Ends the processes, then removes the sockets."""
    ended, staying = await writers.end_unowned(exports_dir)
    acts = [
        Act("stray_export", f"qemu-nbd {each.pid}", f"no open export has its socket {each.option('socket')}")
        for each in ended
    ]
    acts += [
        Act(
            "stray_export",
            f"qemu-nbd {each.pid}",
            f"no open export has its socket {each.option('socket')}, and it does not end",
            Outcome.FAILED,
            "The disk under the repository may hang.",
        )
        for each in staying
    ]
    # Nothing is awaited between looking and removing: only this process makes sockets here.
    for path in sorted(exports_dir.iterdir()):
        if not export.is_open(path) and stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
            acts.append(Act("stale_socket", str(path), "no open export has it"))
    return acts


async def remove_unfinished(parts: PartFiles) -> list[Act]:
    """Files that an earlier life of the hub was exporting to."""
    removed, failed = await asyncio.to_thread(parts.remove_left)
    acts = [Act("unfinished_export", str(path), "the hub ended while it was written") for path in removed]
    for error in failed:
        words = f"the hub ended while it was written, and it cannot be removed: {error.strerror}"
        acts.append(Act("unfinished_export", str(error.filename), words, Outcome.FAILED))
    return acts
