# SPDX-License-Identifier: Apache-2.0
"""JobService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from sendense.hub.v1 import job_pb2
from sendense.hub.v1 import job_service_pb2 as pb
from sendense.hub.v1.job_service_pb2_grpc import JobServiceServicer
from sendense_common import audit_log
from sendense_common.errors import invalid
from sendense_hub.catalog import Catalog, jobs, spans
from sendense_hub.jobs.board import Board
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]
# Slower than this, a backup would outlive its snapshot; nothing is faster.
_SLOWEST, _FASTEST = 64 * 1024, 2**40


class JobService(JobServiceServicer):
    """Shows, slows and stops jobs."""

    def __init__(self, catalog: Catalog, board: Board) -> None:
        self._catalog = catalog
        self._board = board

    async def GetJob(self, request: pb.GetJobRequest, context: _Context) -> pb.GetJobResponse:
        """See the contract."""
        return pb.GetJobResponse(job=await self._board.get(checks.text("job_id", request.job_id)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: _Context) -> pb.ListJobsResponse:
        """See the contract."""
        limit, after = checks.page_size(request.page_size), checks.page_token(request.page_token)
        checks.text("vm", request.vm, required=False)
        if request.state not in job_pb2.JobState.values():
            raise invalid("state", "is unknown")
        states = [request.state] if request.state else []
        found = await self._catalog.run(
            lambda connection: jobs.listed(
                connection, vm=request.vm, states=states, limit=limit + 1, after=after
            )
        )
        answer = pb.ListJobsResponse(jobs=[self._board.current(job) for job in found[:limit]])
        if len(found) > limit:
            last = found[limit - 1]
            answer.next_page_token = checks.make_page_token(last.create_time.ToMicroseconds(), last.job_id)
        return answer

    async def WatchJob(
        self, request: pb.WatchJobRequest, context: _Context
    ) -> AsyncIterator[pb.WatchJobResponse]:
        """See the contract."""
        async for job in self._board.watch(checks.text("job_id", request.job_id)):
            yield pb.WatchJobResponse(job=job)

    async def CancelJob(self, request: pb.CancelJobRequest, context: _Context) -> pb.CancelJobResponse:
        """See the contract."""
        job = await self._board.cancel(checks.text("job_id", request.job_id))
        await audit_log.record("job.cancel", subject=job.job_id, vm=job.vm_name)
        return pb.CancelJobResponse(job=job)

    async def LimitJob(self, request: pb.LimitJobRequest, context: _Context) -> pb.LimitJobResponse:
        """See the contract."""
        checks.text("job_id", request.job_id)
        limit = request.bytes_per_second
        if limit and not _SLOWEST <= limit <= _FASTEST:
            raise invalid(
                "bytes_per_second",
                f"must be 0 (no limit), or {_SLOWEST:,} to {_FASTEST:,} bytes per second",
                remedy="On the command line: 64KiB/s to 1024GiB/s, or `none` for no limit.",
            )
        job = await self._board.limit(request.job_id, limit)
        await audit_log.record("job.limit", subject=job.job_id, vm=job.vm_name, bytes_per_second=limit)
        return pb.LimitJobResponse(job=job)

    async def GetJobTrace(self, request: pb.GetJobTraceRequest, context: _Context) -> pb.GetJobTraceResponse:
        """See the contract."""
        job = await self._board.get(checks.text("job_id", request.job_id))
        found = await self._catalog.run(lambda connection: spans.of_trace(connection, job.trace_id))
        return pb.GetJobTraceResponse(trace_id=job.trace_id, spans=found)
