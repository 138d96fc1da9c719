# SPDX-License-Identifier: Apache-2.0
"""Why an agent could not write: what the hub knows of its qemu-nbd and its repository, and no site sees."""

from __future__ import annotations

import asyncio

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.jobs.new_point import NewPoint

# A repository with less than this when a write failed was full.
_FULL_BELOW_BYTES = 16 * 1024 * 1024


async def explained(error: SendenseError, point: NewPoint) -> SendenseError:
    """A failed write, with what qemu-nbd said; at the site, its end looks like that of a network.

    Args:
        error: as the agent told it; any other than of a write stays as it is.
        point: that was written to.
    """
    if error.reason not in {Reason.REASON_TARGET_WRITE_FAILED, Reason.REASON_TUNNEL_LOST}:
        return error
    if ended := await point.exports_ended():
        return SendenseError(
            Reason.REASON_EXPORT_FAILED,
            f"qemu-nbd ended at the hub while the backup wrote to {', '.join(ended)}",
            remedy="The backup goes on with a new one. If this happens again, look for what ends it: "
            "the log of the kernel tells when memory ran out.",
            retryable=error.retryable,
            qemu_nbd=point.words() or None,
            detail=error.message,
        )
    if error.reason == Reason.REASON_TUNNEL_LOST:
        return error
    if words := point.words():
        error.metadata["qemu_nbd"] = words
    repository = point.repository
    try:
        space = await asyncio.to_thread(repository.space)
    except SendenseError as unavailable:
        error.metadata["repository"] = unavailable.message
        return error
    if space.free_bytes < _FULL_BELOW_BYTES:
        return SendenseError(
            Reason.REASON_REPOSITORY_FULL,
            f"the repository {repository.name} is full: {error.message}",
            remedy="Make room in the repository: the backup goes on then.",
            repository=repository.name,
        )
    return error
