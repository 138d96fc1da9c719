# SPDX-License-Identifier: Apache-2.0
"""Jobs that wait for their next attempt: each gets its turn when its time has come and nothing is missing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import jobs
from sendense_hub.domain import resuming, times
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs.engine import Engine
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

_EVERY_S = 0.5
# What is queued needs nobody, as a rule: only a hub that was killed, or a queue that lost a job, leaves one
# behind.
_FORGOTTEN_EVERY_S = 10.0
_MANY = 10_000
# Less than this does not even hold the tables of a layer.
_ROOM_BYTES = 64 * 1024 * 1024

_OF_REPOSITORY = frozenset({Reason.REASON_REPOSITORY_FULL, Reason.REASON_REPOSITORY_UNAVAILABLE})


class _Look:
    """One of the things that are looked at: whatever becomes of it, the others have their turn."""

    def __init__(self, look: Callable[[], Awaitable[None]], every_s: float) -> None:
        self._look = look
        self._every_s = every_s
        self._next_at = 0.0

    async def again(self) -> None:
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self._every_s
        try:
            await self._look()
        except Exception:
            log.exception("jobs that wait are looked at again in %.1f s", max(self._every_s, _EVERY_S))


class Waker:
    """Looks again and again."""

    def __init__(self, workshop: Workshop, engine: Engine, patience: Patience) -> None:
        """Args: patience: after which a job gets a last attempt whatever is missing, and fails by it."""
        self._workshop = workshop
        self._engine = engine
        self._patience = patience

    async def run(self) -> NoReturn:
        """Goes on until it is cancelled."""
        looks = [_Look(self._round, 0.0), _Look(self._engine.enqueue_forgotten, _FORGOTTEN_EVERY_S)]
        while True:
            for look in looks:
                await look.again()
            await asyncio.sleep(_EVERY_S)

    async def _round(self) -> None:
        await self._engine.enqueue_late()
        states = [pb.JOB_STATE_WAITING, pb.JOB_STATE_CANCELLING]
        for job in await self._workshop.catalog.run(lambda c: jobs.listed(c, states=states, limit=_MANY)):
            if self._workshop.board.runs(job.job_id):
                continue
            if job.state == pb.JOB_STATE_CANCELLING or await self._is_due(job):
                await self._engine.enqueue(job)

    async def _is_due(self, job: pb.Job) -> bool:
        if job.site_name in self._workshop.sites.revoked:
            return True  # to fail by it
        last = job.interruptions[-1]
        now_us = times.now_us()
        if not resuming.time_has_come(last, now_us):
            return False
        waited_us = now_us - resuming.stalled_since_us(job.interruptions)
        if waited_us > self._patience.absent_s * 1e6:
            return True
        try:
            self._workshop.sites.socket(job.site_name)  # nothing can be done without its agent
            if last.failure.reason in _OF_REPOSITORY:
                space = await asyncio.to_thread(self._workshop.repository(job.repository_name).space)
                return space.free_bytes >= _ROOM_BYTES
        except SendenseError:
            return False
        return True
