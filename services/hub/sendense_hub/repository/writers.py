# SPDX-License-Identifier: Apache-2.0
"""One writer per layer, ever: before a layer is written again, whoever wrote it before is proved gone.

A qemu-nbd dies with the hub's process that started it. This is the proof, and the remedy where that process
was stopped and not ended, or the kernel has not got round to it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import strays
from sendense_common.errors import SendenseError
from sendense_common.strays import Running
from sendense_hub.repository import export

log = logging.getLogger(__name__)

_QEMU_NBD = "qemu-nbd"


async def end_others(layer: Path) -> None:
    """Kills each qemu-nbd of ours that serves this file, and returns when there is none.

    Raises:
        SendenseError: EXPORT_FAILED when one cannot be ended.
    """
    ended, staying = await strays.end(lambda each: each.program == _QEMU_NBD and str(layer) in each.words)
    if staying:
        raise SendenseError(
            Reason.REASON_EXPORT_FAILED,
            f"a qemu-nbd that wrote {layer} does not end",
            remedy="The disk under the repository may hang; nothing is written until it is gone.",
            retryable=True,
        )
    if ended:
        log.warning("%d earlier qemu-nbd of %s ended", len(ended), layer)


async def end_unowned(exports_dir: Path) -> tuple[list[Running], list[Running]]:
    """Kills each qemu-nbd whose socket is below `exports_dir` and that is no open export of this process.

    Any other qemu-nbd is somebody's own, whatever file it serves.

    Returns:
        Those that are gone, and those that do not end.
    """
    place = exports_dir.resolve()

    def unowned(each: Running) -> bool:
        socket = each.option("socket")
        if each.program != _QEMU_NBD or not Path(socket).is_absolute():
            return False
        if not (Path(socket).parent.resolve() / Path(socket).name).is_relative_to(place):
            return False
        return each.parent_pid != os.getpid() or not export.is_open(Path(socket))

    return await strays.end(unowned)
