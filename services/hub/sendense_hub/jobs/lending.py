# SPDX-License-Identifier: Apache-2.0
"""More leases for a backup that runs: its session was lost, or a program at the site has to log in by itself.

As for every other login, they go one after another for each credential, and none after a refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from sendense.agent.v1 import backup_pb2 as agent
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common.errors import SendenseError
from sendense_hub.jobs.guarded_sites import GuardedSites, Turn

log = logging.getLogger(__name__)


class Lending:
    """Of one attempt; used as a context around it: what ends the attempt is how its last login ended."""

    def __init__(
        self,
        sites: GuardedSites,
        vcenter: Vcenter,
        job_id: str,
        give: Callable[[agent.LeaseGiven], Awaitable[None]],
    ) -> None:
        """Args: give: tells the agent."""
        self._sites = sites
        self._vcenter = vcenter
        self._job_id = job_id
        self._give = give
        self._known: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._logins = contextlib.AsyncExitStack()
        self._turn: Turn | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._logins.__aexit__(kind, error, traceback)

    def wanted(self, request_id: str) -> None:
        """The agent wants one; asked again with the same ID, it gets the one that is on its way."""
        if request_id in self._known:
            return
        self._known.add(request_id)
        task = asyncio.create_task(self._lend(request_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def used(self) -> None:
        """The login with the newest one worked."""
        if self._turn is not None:
            self._turn.over()

    async def _lend(self, request_id: str) -> None:
        given = agent.LeaseGiven(request_id=request_id)
        try:
            self._turn = await self._logins.enter_async_context(self._sites.login(self._vcenter))
            # As it is now: an operator may have changed address or trust.
            vcenter = await self._sites.now(self._vcenter.name)
            access = self._sites.access(vcenter, operation_pb2.OPERATION_BACKUP, self._job_id)
            given.vcenter.CopyFrom(await self._logins.enter_async_context(access))
            log.info("job %s: the agent gets another lease", self._job_id)
        except SendenseError as error:
            log.warning("job %s: the agent gets no other lease: %s", self._job_id, error)
            given.failure.CopyFrom(error.to_failure())
            self.used()
        await self._give(given)
