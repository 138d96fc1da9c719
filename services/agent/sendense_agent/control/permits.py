# SPDX-License-Identifier: Apache-2.0
"""The permits of this site, given to the workers of all jobs; those of a worker that has ended come back."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable

from google.protobuf.any_pb2 import Any as AnyMessage

from sendense.agent.v1 import permits_pb2 as pb
from sendense_agent.domain.limits import Limits
from sendense_agent.domain.permits import Ask, PermitBook
from sendense_agent.worker.channel import unpack

log = logging.getLogger(__name__)

Answer = Callable[[pb.PermitAnswer], Awaitable[None]]


class Permits:
    """One agent's."""

    def __init__(self, limits: Limits) -> None:
        self._book = PermitBook(limits)
        self._answers: dict[str, Answer] = {}

    def of_worker(self, answer: Answer) -> WorkerPermits:
        """One worker's.

        Args:
            answer: tells the worker.
        """
        owner = str(uuid.uuid4())
        self._answers[owner] = answer
        return WorkerPermits(self, owner)

    def counts(self) -> dict[tuple[int, str], int]:
        """What is in use, by (kind, place)."""
        return self._book.counts()

    async def ask(self, owner: str, request: pb.PermitRequest) -> None:
        """Answers a worker at once: granted, or what it waits for."""
        ask = Ask(owner, request.permit_id, request.kind, dict(request.places))
        granted = self._book.ask(ask)
        waits_for = "" if granted else self._book.waits_for(ask)
        answer = pb.PermitAnswer(permit_id=ask.permit_id, granted=granted, waits_for=waits_for)
        await self._answers[owner](answer)

    async def give_back(self, owner: str, permit_id: str | None = None) -> None:
        """One permit, or all of a worker's when it has ended."""
        if permit_id is None:
            self._answers.pop(owner, None)
        await self._tell(self._book.give_back(owner, permit_id))

    async def _tell(self, granted: Iterable[Ask]) -> None:
        for ask in granted:
            answer = self._answers.get(ask.owner)
            if answer is not None:  # else it has ended meanwhile, and gives all back
                await answer(pb.PermitAnswer(permit_id=ask.permit_id, granted=True))


class WorkerPermits:
    """What one worker holds or waits for."""

    def __init__(self, permits: Permits, owner: str) -> None:
        self._permits = permits
        self._owner = owner

    async def hear(self, wrapped: AnyMessage) -> None:
        """Takes what is about permits; anything else is let by."""
        if (request := unpack(wrapped, pb.PermitRequest)) is not None:
            try:
                await self._permits.ask(self._owner, request)
            except ValueError as error:
                log.error("a worker asked for what cannot be given: %s", error)
        elif (release := unpack(wrapped, pb.PermitRelease)) is not None:
            await self._permits.give_back(self._owner, release.permit_id)

    async def close(self) -> None:
        """The worker has ended: all comes back."""
        await self._permits.give_back(self._owner)
