# SPDX-License-Identifier: Apache-2.0
"""What is found out about a point is remembered: damage, and that there is none."""

from __future__ import annotations

import asyncio
import logging

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import verifications
from sendense_hub.domain.times import now_us
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

DAMAGED = frozenset({Reason.REASON_POINT_CORRUPT, Reason.REASON_POINT_INCOMPLETE})
"""Of a point that was complete once."""


async def remember_right(workshop: Workshop, point_id: str, begun_us: int) -> None:
    """Every byte of a point was read and is right.

    Args:
        workshop: of the hub.
        point_id: of the point.
        begun_us: when the reading began: what another one found wrong meanwhile is news.
    """
    await workshop.catalog.run(lambda connection: verifications.found_right(connection, point_id, begun_us))


async def remember_damage(workshop: Workshop, point: pb.RestorePoint, error: SendenseError) -> None:
    """What was found while a complete point was looked at; nothing, if it is no damage.

    Raises:
        SendenseError: REPOSITORY_UNAVAILABLE: the repository is not there, so that nothing is known.
    """
    if error.reason not in DAMAGED:
        return
    await asyncio.to_thread(workshop.repository(point.repository_name).space)
    log.error("point %s is damaged: %s", point.point_id, error.message)
    time_us = now_us()
    await workshop.catalog.run(
        lambda connection: verifications.found_damaged(
            connection, point.point_id, error.metadata, error.message, time_us
        )
    )
