# SPDX-License-Identifier: Apache-2.0
"""What becomes of jobs that should run and do not, as after a restart: each goes on or is ended, truthfully.

A complete point is never thrown away: where the repository cannot be looked at, or is not mounted, the row of
the point stays, and the next start looks again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1.point_service_pb2 import RestorePoint
from sendense_common.acts import Act, ActLog, Outcome
from sendense_common.errors import SendenseError
from sendense_hub.catalog import cleanups, job_plans, jobs, points
from sendense_hub.catalog.cleanups import PendingCleanup
from sendense_hub.domain import resuming, times
from sendense_hub.domain.resuming import Patience
from sendense_hub.jobs import job_changes, unsettled_points
from sendense_hub.jobs.board import end
from sendense_hub.jobs.workshop import Workshop

log = logging.getLogger(__name__)

_INTERRUPTED = (pb.JOB_STATE_RUNNING, pb.JOB_STATE_CANCELLING)
_RESUMABLE = (pb.JOB_STATE_RUNNING, pb.JOB_STATE_WAITING)
_MANY = 10_000


@dataclass(frozen=True)
class _Stop:
    """Why nothing runs a job."""

    reason: Reason.ValueType
    code: str
    """Of the warning."""
    words: str
    may_repeat: bool
    """It says nothing about the job, which goes on at once, however often; else there are some tries."""

    def message(self, job: pb.Job) -> str:
        return self.words.format(job=f"job {job.job_id} of VM {job.vm_name}")

    def error(self, job: pb.Job, remedy: str) -> SendenseError:
        return SendenseError(
            self.reason,
            self.message(job),
            remedy=remedy,
            retryable=True,
            vm=job.vm_name,
            vcenter=job.vcenter_name,
        )


_RESTART = _Stop(
    Reason.REASON_HUB_RESTARTED, "hub_restarted", "the hub was restarted while {job} ran", may_repeat=True
)
_LOST = _Stop(
    Reason.REASON_INTERNAL, "job_lost", "by a defect of the hub, nothing ran {job} any more", may_repeat=False
)
_NOT_BEGUN = _Stop(
    Reason.REASON_INTERNAL,
    "job_lost",
    "by a defect of the hub, {job} had its turn several times and was not begun",
    may_repeat=False,
)


def _api_died(how: str) -> _Stop:
    return replace(_RESTART, words=f"the hub's API process died ({how}) while {{job}} ran")


async def recover(workshop: Workshop, died_before: str = "") -> None:
    """Looks at what the last life of this hub left running, and finishes deletions that it began.

    Args:
        workshop: of the hub.
        died_before: how the API ended in whose place this one was started; empty: the whole hub was started.

    A job whose point has its commit mark has succeeded, and its snapshot is left to the sweeper. One that was
    being cancelled is cancelled. Any other waits for its next attempt.
    """
    why = _api_died(died_before) if died_before else _RESTART
    for job in await workshop.catalog.run(lambda c: jobs.listed(c, states=_INTERRUPTED, limit=_MANY)):
        await _take_up(workshop, job, why)
    ActLog().write(await unsettled_points.finish(workshop))


async def take_up_lost(workshop: Workshop) -> list[Act]:
    """Looks, while the hub is up, for jobs that should run and that nothing runs; what became of each."""
    catalog, acts = workshop.catalog, []
    for found in await catalog.run(lambda c: jobs.listed(c, states=[pb.JOB_STATE_RUNNING], limit=_MANY)):
        if workshop.board.runs(found.job_id):
            continue
        # Read once more: what ended or waits since is no longer on the board either.
        job = await catalog.run(lambda c, job_id=found.job_id: jobs.get(c, job_id))  # type: ignore[misc]
        if job.state == pb.JOB_STATE_RUNNING and not workshop.board.runs(job.job_id):
            acts += await _take_up_one(workshop, job)
    return acts


async def give_up(workshop: Workshop, job: pb.Job) -> None:
    """What becomes of a job that its turns do not begin: it has succeeded, if its point is complete.

    One that waits with what it has copied waits on, as after an attempt that failed, and is ended when it had
    too many of them. Any other is ended. On the board meanwhile, so that no turn of it begins while its files
    go.
    """
    if workshop.board.runs(job.job_id):
        return
    with workshop.board.run(job):
        now = await workshop.catalog.run(lambda connection: jobs.get(connection, job.job_id))
        if (now.state, now.attempt) == (job.state, job.attempt):
            await _take_up(workshop, now, _NOT_BEGUN)


async def _take_up_one(workshop: Workshop, job: pb.Job) -> list[Act]:
    where, words = f"job {job.job_id}", "nothing ran it any more"
    try:
        if not await _take_up(workshop, job, _LOST):
            return []
    except Exception as error:  # what has stopped it once must not stop the round as well
        log.exception("job %s, which nothing runs, cannot be taken up", job.job_id)
        return [Act("lost_job", where, f"{words}, and it cannot be taken up: {error}", Outcome.FAILED)]
    became = pb.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
    return [Act("lost_job", where, f"{words}; it is {became} now")]


async def _take_up(workshop: Workshop, job: pb.Job, why: _Stop) -> bool:
    """Whether it was still in the state in which it was read: an operator may cancel it meanwhile."""
    state = job.state
    point = await workshop.catalog.run(lambda connection: points.of_job(connection, job.job_id))
    row, trouble, may_go_on = None, None, state in _RESUMABLE
    if point is not None:
        row, trouble = await _settle(workshop, point, keep=may_go_on)
    damaged = trouble is not None and trouble.reason == Reason.REASON_POINT_CORRUPT
    if row is None and may_go_on and not damaged:
        if _waits(job, why):
            return await workshop.catalog.run(
                lambda connection: jobs.write(connection, job, expected=[state])
            )
        if point is not None and trouble is None:
            row, trouble = await _settle(workshop, point, keep=False)
    return await _end(workshop, job, why, row, trouble)


async def _settle(
    workshop: Workshop, point: RestorePoint, *, keep: bool
) -> tuple[RestorePoint | None, SendenseError | None]:
    """A point that was being written: itself if it is complete; else it is removed, or trouble is told.

    Args:
        workshop: of the hub.
        point: as the catalog has it.
        keep: leave what there is of one that is not complete.
    """
    try:
        row = await unsettled_points.look(workshop, point)
        if row is None and not keep:
            await unsettled_points.remove(workshop, point)
    except SendenseError as error:
        log.error("point %s of job %s cannot be looked at: %s", point.point_id, point.job_id, error)
        return None, error
    return row, None


async def _end(
    workshop: Workshop,
    job: pb.Job,
    why: _Stop,
    row: RestorePoint | None,
    trouble: SendenseError | None,
) -> bool:
    before = job.state
    if row is not None:
        job.point_id = row.point_id
        job_changes.warn(why.code, f"Its point was complete when {why.message(job)}.")(job)
        end(job, pb.JOB_STATE_SUCCEEDED)
    else:
        kept = (
            "Nothing of it was kept." if trouble is None else f"What there is of it stays: {trouble.message}."
        )
        state = pb.JOB_STATE_CANCELLED if job.state == pb.JOB_STATE_CANCELLING else pb.JOB_STATE_FAILED
        end(job, state, why.error(job, kept))
    pending = PendingCleanup(job.job_id, job.vcenter_name, job.vm_instance_uuid, job.vm_name)

    def write(connection: sa.Connection) -> bool:
        if not jobs.write(connection, job, expected=[before]):
            return False
        if row is not None:
            points.complete(connection, row)
        job_plans.forget(connection, job.job_id)
        cleanups.add(connection, pending)
        return True

    ended = await workshop.catalog.run(write)
    log.warning("%s: it has ended", why.message(job))
    return ended


def _waits(job: pb.Job, why: _Stop) -> bool:
    """It goes on when its turn comes; False, and it is left in its state, when it was tried too often."""
    failure = why.error(job, "It goes on where it was.").to_failure()
    interruption = pb.JobInterruption(attempt=job.attempt, failure=failure, phase=job.phase)
    interruption.time.GetCurrentTime()

    def next_try_us(interruptions: Sequence[pb.JobInterruption]) -> int | None:
        now_us = times.now_us()
        return now_us if why.may_repeat else resuming.next_try_us(interruptions, Patience(), now_us)

    # Whether the last attempt got further is not known.
    change = job_changes.interrupt(
        interruption, got_further=why.may_repeat, recopied={}, next_try_us=next_try_us
    )
    change(job)
    log.warning("%s: it waits, or is given up", why.message(job))
    return job.interruptions[-1].HasField("next_try_time")
