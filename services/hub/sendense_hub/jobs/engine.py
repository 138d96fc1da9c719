# SPDX-License-Identifier: Apache-2.0
"""DBOS around the jobs: a durable queue with a limit. It knows no more of a job than its ID.

The workflow is one step of a stable name, so new code never meets the step history of old code; what a job
is and how far it got is in the catalog alone.

A workflow's ID is used once, for good. One that has ended and left its job as it was (the catalog was put
back from a copy, or the turn failed before the job began) would be queued in vain: such a job gets another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, SetWorkflowID, WorkflowHandleAsync
from dbos._serialization import DBOSPortableJSONSerializer

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import jobs
from sendense_hub.jobs import recovery
from sendense_hub.jobs.runner import Runner
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

_QUEUE = "backups"
_POLL_S = 0.2
_STOP_WITHIN_S = 25.0
_MANY = 10_000
PAUSES_S = (5.0, 15.0, 30.0, 60.0, 120.0)
"""After each turn that follows one in vain, which left its job as it was; then the job is given up."""
_TO_COME = ["ENQUEUED", "DELAYED", "PENDING"]


@dataclass(frozen=True)
class _InVain:
    """Turns that were queued again because those before left a job as it was."""

    workflow_id: str
    """Of the attempt: what another attempt of the job had counts for that one alone."""
    turns: int
    go_on_at: float
    """By the clock of the loop."""


class Engine:
    """Runs queued jobs, a few at a time."""

    def __init__(self, workshop: Workshop, pauses_s: Sequence[float]) -> None:
        """Made by `start`."""
        self._workshop = workshop
        self._pauses_s = pauses_s
        self._late: dict[str, pb.Job] = {}
        self._in_vain: dict[str, _InVain] = {}

    async def enqueue(self, job: pb.Job) -> None:
        """The job's next attempt runs when its turn comes, also after a restart. Twice is once.

        When the queue cannot be written (the disk of the state is full, say), it is tried again; see
        `enqueue_late`. The catalog has the job, so nobody need ask for it again.
        """
        what = "end" if job.state == pb.JOB_STATE_CANCELLING else job.attempt + 1
        workflow_id = f"{job.job_id}.{what}"
        try:
            if (await (await _enqueue(workflow_id, job)).get_status()).status in _TO_COME:
                self._in_vain.pop(job.job_id, None)
            else:
                await self._again(workflow_id, job)
        except sa.exc.DBAPIError as error:
            if job.job_id not in self._late:
                log.error("job %s cannot be queued now, it is tried again: %s", job.job_id, error.orig)
            self._late[job.job_id] = job
        else:
            self._late.pop(job.job_id, None)

    async def enqueue_forgotten(self) -> None:
        """Jobs that are queued in the catalog, and that no workflow is going to begin, are queued again.

        A hub that was killed between catalog and queue has some, and nobody else would run them. There may be
        thousands, of milliseconds each: no start waits for them.
        """
        queued = await self._workshop.catalog.run(_queued)
        if queued:
            coming = await DBOS.list_workflows_async(status=_TO_COME, load_input=False, load_output=False)
            known = {each.workflow_id.partition(".")[0] for each in coming}
            for job in queued:
                if job.job_id not in known:
                    await self.enqueue(job)

    async def _again(self, workflow_id: str, job: pb.Job) -> None:
        """The workflow of this ID has ended: if it did nothing for the job, another one takes its place.

        What a workflow does to its job is in the catalog before the workflow ends, so a job that is now as it
        was read before had nothing of it. Two workflows at once do no harm: see `Runner.run`.
        """
        now = await self._workshop.catalog.run(lambda connection: jobs.get(connection, job.job_id))
        if (now.state, now.attempt) != (job.state, job.attempt) or self._workshop.board.runs(job.job_id):
            return
        used = await DBOS.list_workflows_async(
            workflow_id_prefix=f"{workflow_id}.", load_input=False, load_output=False
        )
        if any(each.status in _TO_COME for each in used):
            return
        before, time = self._in_vain.get(job.job_id), asyncio.get_running_loop().time()
        if before is None or before.workflow_id != workflow_id:
            before = _InVain(workflow_id, 0, time)
        if time < before.go_on_at:
            return
        if before.turns == len(self._pauses_s):
            del self._in_vain[job.job_id]
            await recovery.give_up(self._workshop, now)
            return
        again = f"{workflow_id}.{len(used) + 2}"
        log.warning("job %s had its turn (%s) and is as it was: it gets another", job.job_id, workflow_id)
        await _enqueue(again, job)
        go_on_at = time + self._pauses_s[before.turns]
        self._in_vain[job.job_id] = _InVain(workflow_id, before.turns + 1, go_on_at)

    async def enqueue_late(self) -> None:
        """Tries again what could not be queued; after a stop, it is one of the forgotten."""
        for job in list(self._late.values()):
            await self.enqueue(job)


_runner: Runner | None = None


@DBOS.step(name="run_job")
async def _run_job(job_id: str) -> None:
    assert _runner is not None
    await _runner.run(job_id)


@DBOS.workflow(name="backup_job")
async def _backup_job(job_id: str) -> None:
    await _run_job(job_id)


async def _enqueue(workflow_id: str, job: pb.Job) -> WorkflowHandleAsync[None]:
    """A workflow of that ID; the one that there is already, whatever became of it."""
    with SetWorkflowID(workflow_id):
        return await DBOS.enqueue_workflow_async(_QUEUE, _backup_job, job.job_id)


@contextlib.asynccontextmanager
async def start(
    workshop: Workshop,
    runner: Runner,
    database: Path,
    *,
    concurrency: int,
    pauses_s: Sequence[float] = PAUSES_S,
) -> AsyncIterator[Engine]:
    """Runs jobs until the block ends; those that run then are interrupted first, and go on at the next start.

    What the catalog has and the queue has not is queued by `Engine.enqueue_forgotten` and `enqueue` alone.

    Args:
        workshop: of this hub.
        runner: what runs one job.
        database: DBOS's own SQLite file.
        concurrency: jobs that run at once.
        pauses_s: after each turn that took the place of one in vain.
    """
    global _runner  # noqa: PLW0603 - DBOS finds its functions by name, so they cannot be methods of ours
    _runner = runner
    config: DBOSConfig = {
        "name": "sendense-hub",
        "system_database_url": f"sqlite:///{database}",
        "application_version": "1",
        "executor_id": "hub",
        "log_level": "WARNING",
        "serializer": DBOSPortableJSONSerializer(),
    }
    dbos = DBOS(config=config)
    DBOS.launch()
    await DBOS.register_queue_async(
        _QUEUE, concurrency=concurrency, polling_interval_sec=_POLL_S, on_conflict="always_update"
    )
    engine = Engine(workshop, pauses_s)
    try:
        yield engine
    finally:
        for event in dbos.background_thread_stop_events:
            event.set()  # no turns any more: what is queued stays so until the next start
        await _stop_jobs(workshop)
        # DBOS puts an executor of its own into the loop and shuts it down with itself; calls go on meanwhile.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        await asyncio.to_thread(DBOS.destroy)
        _runner = None


def _queued(connection: sa.Connection) -> list[pb.Job]:
    return jobs.listed(connection, states=[pb.JOB_STATE_QUEUED], limit=_MANY)[::-1]


async def _stop_jobs(workshop: Workshop) -> None:
    workshop.board.stop_all(
        SendenseError(
            Reason.REASON_SERVICE_STOPPING,
            "the hub was stopped while the job ran",
            remedy="It goes on when the hub runs again.",
            retryable=True,
        )
    )
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_STOP_WITHIN_S):
            while running := workshop.board.running():
                await running[0].wait_news()
