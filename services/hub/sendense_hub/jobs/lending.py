# SPDX-License-Identifier: Apache-2.0
"""More leases for a backup that runs: its session was lost, or a program at the site has to log in by itself.

As for every other login, they go one after another for each credential, and none after a refusal. An agent
that was taken over may ask for ever: there are only so many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import operation_pb2
from sendense.hub.v1.vcenter_service_pb2 import Vcenter
from sendense_common.errors import SendenseError, invalid
from sendense_hub.domain import lease_rate
from sendense_hub.jobs.guarded_sites import GuardedSites, Turn

log = logging.getLogger(__name__)

_REQUEST_ID_CHARACTERS = 128


class Lending:
    """Of one attempt; used as a context around it: what ends the attempt is how its last login ended."""

    def __init__(
        self,
        sites: GuardedSites,
        vcenter: Vcenter,
        job_id: str,
        give: Callable[[agent.LeaseGiven], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: give: tells the agent; clock: seconds."""
        self._sites = sites
        self._vcenter = vcenter
        self._job_id = job_id
        self._give = give
        self._clock = clock
        self._rate = lease_rate.of_attempt(clock())
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

    def planned(self, disks_count: int) -> None:
        """The attempt's plan has so many disks."""
        lease_rate.allow_disks(self._rate, disks_count)

    def wanted(self, request_id: str) -> None:
        """The agent wants one; asked again with the same ID, it gets the one that is on its way.

        Raises:
            SendenseError: LEASES_LIMITED; INVALID_REQUEST when this is no ID.
        """
        if request_id in self._known:
            return
        if not 0 < len(request_id) <= _REQUEST_ID_CHARACTERS:
            raise invalid("request_id", f"must have 1 to {_REQUEST_ID_CHARACTERS} characters")
        if not (self._rate.take(self._clock()) and self._sites.leases_of_jobs.take(self._job_id)):
            raise SendenseError(
                Reason.REASON_LEASES_LIMITED,
                f"the agent of site {self._vcenter.site_name!r} asked for more leases for this job than "
                f"logins can need; the last {len(self._known)} were in this attempt",
                remedy="Look at the agent's log for why it logs in so often. If there is no reason, somebody "
                f"else may have its keys: `sendense agent revoke {self._vcenter.site_name}`.",
                retryable=False,
                site=self._vcenter.site_name,
                job=self._job_id,
            )
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
            async with contextlib.AsyncExitStack() as mine:
                turn = await mine.enter_async_context(self._sites.login(self._vcenter))
                # How the one before ended is known: this one would still have to wait.
                await self._logins.aclose()
                self._turn = turn
                # As it is now: an operator may have changed address or trust.
                vcenter = await self._sites.now(self._vcenter.name)
                access = self._sites.access(vcenter, operation_pb2.OPERATION_BACKUP, self._job_id)
                given.vcenter.CopyFrom(await mine.enter_async_context(access))
                self._logins = mine.pop_all()
            log.info("job %s: the agent gets another lease", self._job_id)
        except SendenseError as error:
            log.warning("job %s: the agent gets no other lease: %s", self._job_id, error)
            given.failure.CopyFrom(error.to_failure())
        await self._give(given)
