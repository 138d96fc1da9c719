# SPDX-License-Identifier: Apache-2.0
"""A command that watches a job while the hub stops and starts again, and one that only asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2, job_service_pb2
from sendense.hub.v1.job_service_pb2_grpc import (
    JobServiceServicer,
    JobServiceStub,
    add_JobServiceServicer_to_server,
)
from sendense_cli import job_view
from sendense_cli.patience import Patience
from sendense_cli.session import Session
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import private_dir

pytestmark = pytest.mark.integration

WITHIN_S = 30.0
JOB = "3f2a9c1b"


class Jobs(JobServiceServicer):
    """A hub with one job."""

    def __init__(self, state: job_pb2.JobState.ValueType) -> None:
        self.state = state
        self.asked = asyncio.Event()

    async def WatchJob(self, request: job_service_pb2.WatchJobRequest, context: Any) -> AsyncIterator[Any]:
        yield job_service_pb2.WatchJobResponse(job=job_pb2.Job(job_id=JOB, vm_name="web", state=self.state))
        self.asked.set()
        if self.state == job_pb2.JOB_STATE_RUNNING:
            await asyncio.Event().wait()

    async def GetJob(self, request: job_service_pb2.GetJobRequest, context: Any) -> Any:
        self.asked.set()
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def hub(session: Session, jobs: Jobs) -> AsyncIterator[Jobs]:
    socket = session.installation.hub.api_socket
    private_dir(socket.parent)
    service = rpc.Service("sendense.hub.v1.JobService", add_JobServiceServicer_to_server, jobs)
    async with rpc.serve(socket, [service], stop_grace_s=0):
        yield jobs


def running() -> Jobs:
    return Jobs(job_pb2.JOB_STATE_RUNNING)  # type: ignore[abstract]  # the other calls answer UNIMPLEMENTED


async def test_a_job_is_watched_over_a_restart_of_the_hub_which_is_told_once(short_tmp: Path):
    session, said, waits = Session(short_tmp, as_json=True), [], asyncio.Event()

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    async with asyncio.timeout(WITHIN_S):
        async with hub(session, running()) as first:
            following = asyncio.create_task(job_view.follow(session, JOB, Patience(say)))
            await first.asked.wait()
        await waits.wait()
        assert not following.done()
        ended = Jobs(job_pb2.JOB_STATE_SUCCEEDED)  # type: ignore[abstract]
        async with hub(session, ended):
            assert (await following).state == job_pb2.JOB_STATE_SUCCEEDED
    assert len(said) == 2
    assert str(session.installation.hub.api_socket) in said[0]
    assert said[1] == "the hub answers again"


async def test_a_watch_that_is_told_nothing_is_asked_for_anew(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_view, "_ANEW_EVERY_S", 0.3)
    session, said = Session(short_tmp, as_json=True), list[str]()
    async with asyncio.timeout(WITHIN_S), hub(session, running()) as jobs:
        following = asyncio.create_task(job_view.follow(session, JOB, Patience(said.append)))
        await jobs.asked.wait()
        jobs.state = job_pb2.JOB_STATE_SUCCEEDED  # and the watch that there is says nothing of it
        assert (await following).state == job_pb2.JOB_STATE_SUCCEEDED
    assert said == []


async def test_a_hub_that_does_not_come_back_ends_the_watching_in_words(short_tmp: Path):
    session = Session(short_tmp, as_json=True)
    async with asyncio.timeout(WITHIN_S):
        async with hub(session, running()) as first:
            patience = Patience(lambda text: None, most_s=0.1)
            following = asyncio.create_task(job_view.follow(session, JOB, patience))
            await first.asked.wait()
        with pytest.raises(SendenseError, match="it was waited for") as told:
            await following
    assert told.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
    assert told.value.remedy


async def test_a_call_that_the_hub_breaks_off_says_where_and_what_to_do(short_tmp: Path):
    session = Session(short_tmp, as_json=True)

    async def ask() -> None:
        async with session.hub() as channel:
            await JobServiceStub(channel).GetJob(job_service_pb2.GetJobRequest(job_id=JOB))

    async with asyncio.timeout(WITHIN_S):
        async with hub(session, running()) as first:
            asking = asyncio.create_task(ask())
            await first.asked.wait()
        with pytest.raises(SendenseError) as told:
            await asking
    assert told.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
    assert told.value.message == f"the hub broke off the call at {session.installation.hub.api_socket}"
    assert "`sendense doctor`" in told.value.remedy
