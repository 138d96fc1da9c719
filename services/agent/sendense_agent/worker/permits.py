# SPDX-License-Identifier: Apache-2.0
"""Asking the agent's lasting process, which counts over all jobs, before what is limited at a site."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from sendense.agent.v1 import permits_pb2 as pb
from sendense_agent.vsphere import Place
from sendense_agent.worker.channel import Channel
from sendense_common.undisturbed import undisturbed

Waiting = Callable[[pb.PermitKind.ValueType, str], Awaitable[None]]


class Permits:
    """Of one worker."""

    def __init__(self, channel: Channel, waiting: Waiting) -> None:
        """Args: waiting: is told what is waited for; once for each kind."""
        self._channel = channel
        self._waiting = waiting
        self._answers: dict[str, asyncio.Queue[pb.PermitAnswer]] = {}
        self._told: set[pb.PermitKind.ValueType] = set()

    def hear(self, answer: pb.PermitAnswer) -> None:
        """What the lasting process says."""
        if answer.permit_id in self._answers:
            self._answers[answer.permit_id].put_nowait(answer)

    @contextlib.asynccontextmanager
    async def held(self, kind: pb.PermitKind.ValueType, places: Sequence[Place]) -> AsyncIterator[None]:
        """Waits for a permit for all the places, and has it while the block runs. No places: no limit."""
        if not places:
            yield
            return
        permit_id = str(uuid.uuid4())
        answers = self._answers[permit_id] = asyncio.Queue()
        request = pb.PermitRequest(
            permit_id=permit_id, kind=kind, places={each.identity: each.name for each in places}
        )
        try:
            await self._channel.send(request)
            while not (answer := await answers.get()).granted:
                if kind not in self._told:
                    self._told.add(kind)
                    await self._waiting(kind, answer.waits_for)
            yield
        finally:
            del self._answers[permit_id]
            await undisturbed(self._channel.send(pb.PermitRelease(permit_id=permit_id)))
