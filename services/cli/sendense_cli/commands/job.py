# SPDX-License-Identifier: Apache-2.0
"""`sendense job`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_service_pb2 as pb
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense_cli import job_view, rates, trace_view, words
from sendense_cli.commands.backup import detached
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console, table
from sendense_common.errors import SendenseError

app = typer.Typer(no_args_is_help=True, help="Jobs: list, show, watch, limit, cancel, trace.")

Id = Annotated[str, typer.Argument(metavar="JOB", help="Its ID, or the first 6 or more characters of it.")]


@app.command("list")
def list_(
    vm: Annotated[str, typer.Option(metavar="N", help="Only of VMs with this name.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=1000)] = 20,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """List jobs, newest first.

    Example: sendense job list --vm web01
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await JobServiceStub(hub).ListJobs(pb.ListJobsRequest(vm=vm, page_size=limit))
        made = table(
            ["JOB", "VM", "VCENTER", "STATE", "STARTED", "TOOK", "COPIED"], [], right=["TOOK", "COPIED"]
        )
        for job in answer.jobs:
            made.add_row(
                words.short(job.job_id), job.vm_name, job.vcenter_name, job_view.state_text(job),
                words.moment(job.start_time),
                words.took(job),
                words.size(sum(disk.copied_bytes for disk in job.disks)),
            )  # fmt: skip
        session.answer(answer, made)

    session.run(work())


@app.command()
def show(job: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show a job: its disks, its result, its warnings.

    Example: sendense job show 3f2a9c1b
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await JobServiceStub(hub).GetJob(pb.GetJobRequest(job_id=job))
        if as_json:
            session.answer(answer.job, None)
        else:
            console.print(job_view.summary(answer.job))

    session.run(work())


@app.command()
def watch(job: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show a job's progress until it has ended; Ctrl-C detaches. Exit code 1 if it failed.

    Example: sendense job watch 3f2a9c1b
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        async with session.hub() as hub:
            found = await JobServiceStub(hub).GetJob(pb.GetJobRequest(job_id=job))
        try:
            ended = await job_view.follow(session, found.job.job_id)
        except asyncio.CancelledError:
            detached(found.job.job_id)
            raise
        if as_json:
            session.answer(ended, None)
        else:
            console.print(job_view.summary(ended))
        return job_view.exit_for(ended)

    session.run(work())


@app.command()
def limit(
    job: Id,
    rate: Annotated[str, typer.Argument(metavar="RATE", help="As 20MiB/s; `none` takes the limit away.")],
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Set how fast a job may read at its site, all its disks together.

    From now on and in its later attempts, until it is set anew.

    Example: sendense job limit 3f2a9c1b 20MiB/s
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        request = pb.LimitJobRequest(job_id=job, bytes_per_second=rates.bytes_per_second(rate))
        async with session.hub() as hub:
            answer = await JobServiceStub(hub).LimitJob(request)
        session.answer(answer.job, f"job {answer.job.job_id}: {job_view.limit_text(answer.job)}")

    session.run(work())


@app.command()
def cancel(job: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Stop a job; returns at once. Nothing of it stays.

    Example: sendense job cancel 3f2a9c1b
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await JobServiceStub(hub).CancelJob(pb.CancelJobRequest(job_id=job))
        session.answer(answer.job, f"job {answer.job.job_id}: {words.state(answer.job)}")

    session.run(work())


@app.command()
def trace(job: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Draw what a job did and how long each step took, through all services.

    Example: sendense job trace 3f2a9c1b
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            stub = JobServiceStub(hub)
            answer = await stub.GetJobTrace(pb.GetJobTraceRequest(job_id=job))
            # After the spans: an attempt that has ended by now is never said to run.
            found = (await stub.GetJob(pb.GetJobRequest(job_id=job))).job
        if not answer.spans:
            raise SendenseError(
                Reason.REASON_JOB_NOT_FOUND,
                f"no spans are kept of job {job}",
                remedy="Old traces are dropped.",
            )
        columns = console.width if console.is_terminal else trace_view.PIPE_WIDTH
        session.answer(answer, trace_view.tree(answer.spans, columns, found))

    session.run(work())
