# SPDX-License-Identifier: Apache-2.0
"""The jobs as they are at this moment.

What an operator sees is never ahead of the catalog, not even a counter: it is written before it is shown, so
that nothing jumps back when the hub is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, jobs
from sendense_hub.domain import job_rules

_COUNTERS_EVERY_S = 0.5
_WATCH_EVERY_S = 0.1

Change = Callable[[pb.Job], None]


class LiveJob:
    """A job that runs in this process."""

    def __init__(self, catalog: Catalog, job: pb.Job) -> None:
        """Made by `Board.run`."""
        self._catalog = catalog
        self._changing = asyncio.Lock()
        self._news = asyncio.Event()
        self._written_at = 0.0
        self.job = job
        """As it is shown: never changed in place."""
        self.newest = job
        """The same with counters that are not written yet."""
        self.stop_requested = asyncio.Event()
        self.stop_cause: SendenseError | None = None

    async def change(self, change: Change) -> None:
        """Makes a new version, writes it, then shows it; nothing happens when it is the same.

        Raises:
            SendenseError: JOB_ENDED; an ended job never changes.
        """
        async with self._changing:
            version = self._next(change)
            if version != self.job:
                await self._write(version)

    async def begin(self, change: Change) -> bool:
        """Like `change`, if the catalog still has the state that is known here; whether it had.

        A cancel of a job that does not run is written to the catalog alone: one that came between the reading
        of the job and its place on the board must not be written over.
        """
        async with self._changing:
            known = self.newest.state
            version = self._next(change)

            def write(connection: sa.Connection) -> bool:
                version.bytes_per_second = jobs.limit(connection, version.job_id)
                return jobs.write(connection, version, expected=[known])

            if not await self._catalog.run(write):
                return False
            self._show(version)
            return True

    async def limit(self, bytes_per_second: int) -> bool:
        """It may read so fast from now on; whether it had not ended."""

        def change(job: pb.Job) -> None:
            job.bytes_per_second = bytes_per_second

        async with self._changing:
            version = self._next(change)
            if not await self._catalog.run(
                lambda connection: jobs.set_limit(connection, version.job_id, bytes_per_second)
            ):
                return False
            # The counters of this version may not be written yet: what is shown is the written one.
            shown = pb.Job()
            shown.CopyFrom(self.job)
            change(shown)
            self.job, self.newest = shown, version
            self.tell()
            return True

    async def count(self, change: Change) -> None:
        """New counters: written and shown now and then, or when they show that a disk has begun."""
        async with self._changing:
            version = self._next(change)
            due = asyncio.get_running_loop().time() - self._written_at >= _COUNTERS_EVERY_S
            if due or _disk_states(version) != _disk_states(self.job):
                await self._write(version)
            else:
                self.newest = version

    def ask_to_stop(self, cause: SendenseError) -> None:
        """The runner will end the job; the first cause stands."""
        if not self.stop_requested.is_set():
            self.stop_cause = cause
            self.stop_requested.set()

    async def wait_news(self) -> None:
        """Returns at the next version."""
        await self._news.wait()

    def tell(self) -> None:
        """Wakes everybody who waits for news."""
        self._news.set()
        self._news = asyncio.Event()

    def _next(self, change: Change) -> pb.Job:
        version = pb.Job()
        version.CopyFrom(self.newest)
        change(version)
        return version

    async def _write(self, version: pb.Job) -> None:
        if not await self._catalog.run(lambda connection: jobs.write(connection, version)):
            raise SendenseError(Reason.REASON_JOB_ENDED, f"job {version.job_id} has ended")
        self._show(version)

    def _show(self, version: pb.Job) -> None:
        """After it was written."""
        self._written_at = asyncio.get_running_loop().time()
        self.job = self.newest = version
        self.tell()


class Board:
    """All jobs: what runs from memory, the rest from the catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._live: dict[str, LiveJob] = {}
        self._stopping: SendenseError | None = None

    @contextlib.contextmanager
    def run(self, job: pb.Job) -> Iterator[LiveJob]:
        """The job runs here until the block ends."""
        live = LiveJob(self._catalog, job)
        self._live[job.job_id] = live
        if self._stopping is not None:
            live.ask_to_stop(self._stopping)
        try:
            yield live
        finally:
            del self._live[job.job_id]
            live.tell()  # who watches it looks into the catalog from now on

    def running(self) -> list[LiveJob]:
        """What runs here."""
        return list(self._live.values())

    def runs(self, job_id: str) -> bool:
        """Whether it runs here."""
        return job_id in self._live

    def stop_all(self, cause: SendenseError) -> None:
        """Asks all that run to stop, and any that still gets its turn."""
        self._stopping = cause
        for live in self.running():
            live.ask_to_stop(cause)

    async def get(self, job_id: str) -> pb.Job:
        """One, by its ID or a unique prefix; JOB_NOT_FOUND."""
        return self.current(await self._catalog.run(lambda connection: jobs.get(connection, job_id)))

    def current(self, stored: pb.Job) -> pb.Job:
        """The newest version of a job that was read from the catalog."""
        live = self._live.get(stored.job_id)
        return live.job if live else stored

    async def watch(self, job_id: str) -> AsyncIterator[pb.Job]:
        """The job now and whenever it changes, at most ten times a second; ends when the job has ended."""
        job = await self.get(job_id)
        while True:
            yield job
            if job.state in job_rules.ENDED:
                return
            shown = job
            await asyncio.sleep(_WATCH_EVERY_S)
            while (job := await self.get(shown.job_id)) == shown:
                live = self._live.get(shown.job_id)
                if live and live.job is job:
                    await live.wait_news()
                else:
                    await asyncio.sleep(_WATCH_EVERY_S)

    async def cancel(self, job_id: str) -> pb.Job:
        """Asks a job to stop.

        Raises:
            SendenseError: JOB_ENDED when there is nothing to stop any more.
        """
        job = await self.get(job_id)
        if job.state == pb.JOB_STATE_CANCELLING:
            return job
        asked = pb.Job()
        asked.CopyFrom(job)
        _cancelling(asked)
        cause = cancelled(job.job_id)
        live = self._live.get(job.job_id)
        if live:
            await asyncio.shield(_stop(live, cause))  # a caller that hangs up does not leave it half said
            return live.job
        if job.state == pb.JOB_STATE_QUEUED:
            end(
                asked, pb.JOB_STATE_CANCELLED, cause
            )  # there is nothing of it; one that waits has to be ended
        if await self._catalog.run(lambda connection: jobs.write(connection, asked, expected=[job.state])):
            return asked
        return await self.cancel(job.job_id)  # its turn came at this moment

    async def limit(self, job_id: str, bytes_per_second: int) -> pb.Job:
        """How fast a job may read, in this attempt and later ones; 0 is no limit.

        Raises:
            SendenseError: JOB_NOT_FOUND; JOB_ENDED when there is nothing to limit any more.
        """
        job_id = (await self.get(job_id)).job_id

        def write(connection: sa.Connection) -> bool:
            return jobs.set_limit(connection, job_id, bytes_per_second)

        live = self._live.get(job_id)
        if live is None and not await self._catalog.run(write):
            raise _ended(job_id)
        live = self._live.get(job_id)  # its turn may have come at this moment
        if live is not None and not await asyncio.shield(live.limit(bytes_per_second)):
            raise _ended(job_id)
        return await self.get(job_id)


def _ended(job_id: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_JOB_ENDED,
        f"job {job_id} has ended",
        remedy=f"`sendense job show {job_id[:8]}` has its result.",
        job=job_id,
    )


def cancelled(job_id: str) -> SendenseError:
    """CANCELLED, by somebody."""
    return SendenseError(
        Reason.REASON_CANCELLED, f"job {job_id} was cancelled by an operator", retryable=False
    )


def end(job: pb.Job, state: pb.JobState.ValueType, failure: SendenseError | None = None) -> None:
    """The job is over."""
    job.state = state
    if job.phase != pb.JOB_PHASE_DONE:
        job.ended_in_phase = job.phase
    job.phase = pb.JOB_PHASE_DONE
    job.end_time.GetCurrentTime()
    if failure is not None:
        job.failure.CopyFrom(failure.to_failure())


async def _stop(live: LiveJob, cause: SendenseError) -> None:
    # Written first: a commit that begins at this moment sees it, or this sees the commit.
    await live.change(_cancelling)
    live.ask_to_stop(cause)


def _cancelling(job: pb.Job) -> None:
    if not job_rules.may_cancel(job):
        ended = job.state in job_rules.ENDED
        raise SendenseError(
            Reason.REASON_JOB_ENDED,
            f"job {job.job_id} has ended" if ended else f"the point of job {job.job_id} is being completed",
            remedy=f"`sendense job show {job.job_id[:8]}` has its result. A point is removed with "
            "`sendense point delete POINT`.",
            job=job.job_id,
        )
    job.state = pb.JOB_STATE_CANCELLING


def _disk_states(job: pb.Job) -> list[int]:
    return [disk.state for disk in job.disks]
