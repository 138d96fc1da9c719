# SPDX-License-Identifier: Apache-2.0
"""The hub's API, asked by somebody who knows that it may be dead, frozen or restarted just now."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import (
    backup_service_pb2,
    job_pb2,
    job_service_pb2,
    point_service_pb2,
    site_service_pb2,
    system_service_pb2,
)
from sendense.hub.v1.backup_service_pb2_grpc import BackupServiceStub
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense.hub.v1.point_service_pb2_grpc import PointServiceStub
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError

_ONE_CALL_S = 8.0
_AGAIN_AFTER_S = 0.3
_AWAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}

Call = Callable[[grpc.aio.Channel], Any]


class Away(Exception):  # noqa: N818 - reads better where it is caught
    """The hub did not answer in time."""


class Hub:
    """Calls that are tried until they are answered."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def once(self, call: Call, *, within_s: float = _ONE_CALL_S) -> Any:
        """One try.

        Raises:
            Away: nobody answered.
            SendenseError: the answer was no.
        """
        try:
            async with asyncio.timeout(within_s), rpc.connect(self._socket) as channel:
                return await call(channel)
        except TimeoutError as error:
            raise Away("no answer in time") from error
        except grpc.aio.AioRpcError as error:
            no = SendenseError.from_rpc(error, doing="asking the hub")
            if error.code() in _AWAY and no.reason in {
                Reason.REASON_UNSPECIFIED,
                Reason.REASON_SERVICE_UNAVAILABLE,
                Reason.REASON_SERVICE_STOPPING,
                Reason.REASON_INTERNAL,
            }:
                raise Away(f"{error.code().name}: {error.details()}") from error
            raise no from error

    async def ask(self, call: Call, *, within_s: float = 120.0, one_s: float = _ONE_CALL_S) -> Any:
        """Again and again; `Away` when time is over."""
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            try:
                return await self.once(call, within_s=one_s)
            except Away:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_AGAIN_AFTER_S)

    async def start_backup(self, vm: str, *, full: bool) -> job_pb2.Job:
        """Begins one; tried with the same request ID, so that it begins once."""
        request = backup_service_pb2.StartBackupRequest(
            request_id=str(uuid.uuid4()),
            vm=vm,
            mode=job_pb2.BACKUP_MODE_FULL if full else job_pb2.BACKUP_MODE_AUTO,
            quiesce=job_pb2.QUIESCE_OFF,
        )
        answer = await self.ask(lambda channel: BackupServiceStub(channel).StartBackup(request))
        return answer.job  # type: ignore[no-any-return]

    async def job(self, job_id: str) -> job_pb2.Job:
        """As it is now."""
        request = job_service_pb2.GetJobRequest(job_id=job_id)
        answer = await self.ask(lambda channel: JobServiceStub(channel).GetJob(request))
        return answer.job  # type: ignore[no-any-return]

    async def watch(self, job_id: str) -> AsyncIterator[job_pb2.Job]:
        """Each state that the hub tells, to its end or to the end of the connection."""
        request = job_service_pb2.WatchJobRequest(job_id=job_id)
        try:
            async with rpc.connect(self._socket) as channel:
                async for seen in JobServiceStub(channel).WatchJob(request):
                    yield seen.job
        except grpc.aio.AioRpcError:
            return

    async def listed(self, count: int) -> tuple[list[job_pb2.Job], list[point_service_pb2.RestorePoint]]:
        """Newest jobs and points, in one try; the jobs are read first."""

        async def both(channel: grpc.aio.Channel) -> Any:
            jobs = await JobServiceStub(channel).ListJobs(job_service_pb2.ListJobsRequest(page_size=count))
            points = await PointServiceStub(channel).ListPoints(
                point_service_pb2.ListPointsRequest(page_size=count)
            )
            return list(jobs.jobs), list(points.points)

        found: tuple[list[job_pb2.Job], list[point_service_pb2.RestorePoint]] = await self.once(both)
        return found

    async def point(self, point_id: str) -> point_service_pb2.RestorePoint:
        """One."""
        request = point_service_pb2.GetPointRequest(point_id=point_id)
        answer = await self.ask(lambda channel: PointServiceStub(channel).GetPoint(request))
        return answer.point  # type: ignore[no-any-return]

    async def export(self, point_id: str, disk: int, directory: Path) -> Path:
        """One disk as a raw file, tried until it is whole."""
        path = directory / f"{uuid.uuid4().hex}.raw"

        async def export(channel: grpc.aio.Channel) -> None:
            path.unlink(missing_ok=True)  # of a try whose answer was lost
            request = point_service_pb2.ExportDiskRequest(
                point_id=point_id, disk_key=disk, output_path=str(path),
                format=point_service_pb2.DISK_FORMAT_RAW,
            )  # fmt: skip
            async for _ in PointServiceStub(channel).ExportDisk(request):
                pass

        await self.ask(export, within_s=180.0, one_s=90.0)
        return path

    async def delete(self, point_id: str) -> None:
        """Until it is gone."""
        request = point_service_pb2.DeletePointRequest(point_id=point_id)
        try:
            await self.ask(lambda channel: PointServiceStub(channel).DeletePoint(request), one_s=30.0)
        except SendenseError as error:
            if error.reason != Reason.REASON_POINT_NOT_FOUND:  # an answer was lost
                raise

    async def connected(self) -> bool:
        """Whether the hub has its agent."""
        try:
            answer = await self.once(
                lambda channel: SiteServiceStub(channel).ListSites(site_service_pb2.ListSitesRequest())
            )
        except (Away, SendenseError):
            return False
        return all(site.connected for site in answer.sites)

    async def troubles(self) -> list[str]:
        """What its own diagnosis does not find in order."""
        answer = await self.ask(
            lambda channel: SystemServiceStub(channel).Diagnose(system_service_pb2.DiagnoseRequest())
        )
        return [
            f"{check.name}: {check.finding}"
            for check in answer.checks
            if check.status != system_service_pb2.CHECK_STATUS_OK
        ]
