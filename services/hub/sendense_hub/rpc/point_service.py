# SPDX-License-Identifier: Apache-2.0
"""PointService."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import point_service_pb2 as pb
from sendense.hub.v1.point_service_pb2_grpc import PointServiceServicer
from sendense_common import audit_log, telemetry
from sendense_common.errors import SendenseError, invalid
from sendense_hub.catalog import points, vcenters
from sendense_hub.domain.times import now_us
from sendense_hub.jobs.point_health import remember_damage, remember_right
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import PointDocument, Repository, delete_point, export_disk, verify_point
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]
_FORMATS = {pb.DISK_FORMAT_RAW: "raw", pb.DISK_FORMAT_QCOW2: "qcow2", pb.DISK_FORMAT_VMDK: "vmdk"}
_PATH_CHARS = 4096


class PointService(PointServiceServicer):
    """Shows, verifies, exports and deletes restore points."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def GetPoint(self, request: pb.GetPointRequest, context: _Context) -> pb.GetPointResponse:
        """See the contract."""
        return pb.GetPointResponse(point=await self._get(request.point_id))

    async def ListPoints(self, request: pb.ListPointsRequest, context: _Context) -> pb.ListPointsResponse:
        """See the contract."""
        limit, after = checks.page_size(request.page_size), checks.page_token(request.page_token)
        checks.text("vm", request.vm, required=False)
        checks.text("vcenter_name", request.vcenter_name, required=False)
        found = await self._workshop.catalog.run(
            lambda connection: points.listed(
                connection,
                vm=request.vm,
                vcenter_name=request.vcenter_name,
                limit=limit + 1,
                after=after,
            )
        )
        if request.vm and not found and after is None:
            await self._find(request.vm, request.vcenter_name)
        answer = pb.ListPointsResponse(points=found[:limit])
        if len(found) > limit:
            last = found[limit - 1]
            answer.next_page_token = checks.make_page_token(
                last.complete_time.ToMicroseconds(), last.point_id
            )
        return answer

    async def _find(self, vm: str, vcenter_name: str) -> None:
        """VM_NOT_FOUND when the hub has never seen it; VCENTER_NOT_FOUND.

        No vCenter is asked: who may look at points may not have the hub log in everywhere.
        """

        def look(connection: sa.Connection) -> None:
            if points.ever_backed_up(connection, vm, vcenter_name):
                return
            if vcenter_name:
                vcenters.get(connection, vcenter_name)
            if vcenters.find_machines(connection, vm, vcenter_name):
                return
            where = f"at vCenter {vcenter_name}" if vcenter_name else "at any vCenter"
            raise SendenseError(
                Reason.REASON_VM_NOT_FOUND,
                f"there is no point of a VM {vm!r}, and the hub has seen no VM of that name {where}",
                remedy="Look for its name: `sendense point list` shows all points, and `sendense vm list` "
                "asks all vCenters what they have."
                if vcenters.listed(connection)
                else "`sendense point list` shows all points; there is no vCenter to ask.",
                vm=vm,
            )

        await self._workshop.catalog.run(look)

    async def VerifyPoint(
        self, request: pb.VerifyPointRequest, context: _Context
    ) -> AsyncIterator[pb.VerifyPointResponse]:
        """See the contract."""
        async with (
            self._reading(request.point_id) as (repository, document),
            audit_log.recorded("point.verify", subject=document.point_id),
        ):
            with telemetry.span("verify point", point=document.point_id):
                digests, report, begun_us = [], pb.VerifyPointResponse(), now_us()
                run_dir = self._workshop.exports_dir
                async with contextlib.aclosing(verify_point(repository, document, run_dir)) as reports:
                    async for now in reports:
                        if now.sha256:
                            digests.append(pb.DiskDigest(disk_key=now.disk_key, sha256=now.sha256))
                        report = pb.VerifyPointResponse(
                            disk_key=now.disk_key, read_bytes=now.read_bytes, total_bytes=now.total_bytes
                        )
                        yield report
            await remember_right(self._workshop, document.point_id, begun_us)
            yield pb.VerifyPointResponse(
                disk_key=report.disk_key,
                read_bytes=report.total_bytes,
                total_bytes=report.total_bytes,
                done=True,
                digests=digests,
            )

    async def ExportDisk(
        self, request: pb.ExportDiskRequest, context: _Context
    ) -> AsyncIterator[pb.ExportDiskResponse]:
        """See the contract."""
        if request.format not in _FORMATS:
            raise invalid("format", "must be RAW, QCOW2 or VMDK")
        output = self._output(request.output_path)
        facts: dict[str, Any] = {"disk": request.disk_key, "output": str(output)}
        async with (
            self._reading(request.point_id) as (repository, document),
            audit_log.recorded("point.export", subject=document.point_id, **facts),
        ):
            with telemetry.span("export disk", point=document.point_id, disk=request.disk_key):
                percents = export_disk(
                    repository,
                    document,
                    request.disk_key,
                    _FORMATS[request.format],
                    output,
                    run_dir=None if request.skip_verification else self._workshop.exports_dir,
                    parts=self._workshop.parts,
                )
                async with contextlib.aclosing(percents):
                    async for percent in percents:
                        if percent < 100:
                            yield pb.ExportDiskResponse(percent=percent)
            yield pb.ExportDiskResponse(
                percent=100,
                done=True,
                file_bytes=output.stat().st_size,
                verified=not request.skip_verification,
            )

    async def DeletePoint(self, request: pb.DeletePointRequest, context: _Context) -> pb.DeletePointResponse:
        """See the contract."""
        # A caller that hangs up does not leave it half done, or unlocked while it goes on.
        return pb.DeletePointResponse(freed_bytes=await asyncio.shield(self._delete(request.point_id)))

    async def _delete(self, point_id: str) -> int:
        point = await self._get(point_id)
        if point.state == pb.POINT_STATE_WRITING:
            raise SendenseError(
                Reason.REASON_POINT_BUSY,
                f"job {point.job_id} writes point {point.point_id}",
                remedy="Cancel the job instead.",
                point=point.point_id,
            )
        repository = self._workshop.repository(point.repository_name)
        catalog = self._workshop.catalog
        with self._workshop.locks.deleting(point.point_id):
            point = await self._get(point.point_id)
            if point.dependant_point_ids:
                dependants = ", ".join(point.dependant_point_ids)
                count = len(point.dependant_point_ids)
                points_are = "1 point is" if count == 1 else f"{count} points are"
                raise SendenseError(
                    Reason.REASON_POINT_HAS_DEPENDANTS,
                    f"{points_are} built on {point.point_id}: {dependants}",
                    remedy="Delete those first, the newest before the oldest.",
                    point=point.point_id,
                    dependants=dependants,
                )

            await asyncio.to_thread(repository.space)  # not mounted: then nothing is marked either
            await audit_log.record("point.delete", subject=point.point_id, vm=point.vm_name)
            await catalog.run(lambda connection: points.set_deleting(connection, point.point_id))
            freed_bytes = await delete_point(repository, point.directory)
            await catalog.run(lambda connection: points.forget(connection, point.point_id))
        return freed_bytes

    def _output(self, path: str) -> Path:
        """Where an export may go: not among what the hub itself keeps."""
        output = Path(path)
        if len(path) > _PATH_CHARS or "\0" in path or not output.name:
            raise invalid("output_path", "is not a path of a file")
        if not output.is_absolute():
            raise invalid("output_path", "must be an absolute path on the hub's host")
        try:
            place = output.resolve()
        except (OSError, RuntimeError) as error:
            raise invalid("output_path", f"cannot be followed: {error}") from None
        if place.is_relative_to(self._workshop.exports_dir.parent.resolve()):
            raise invalid("output_path", "lies in the hub's own directory")
        for repository in self._workshop.repositories.values():
            if place.is_relative_to(repository.root.resolve()):
                raise invalid("output_path", f"lies in the repository {repository.name}")
        return output

    async def _get(self, point_id: str) -> pb.RestorePoint:
        checks.text("point_id", point_id)
        return await self._workshop.catalog.run(lambda connection: points.get(connection, point_id))

    @contextlib.asynccontextmanager
    async def _reading(self, point_id: str) -> AsyncIterator[tuple[Repository, PointDocument]]:
        """A complete point and its chain, which nobody deletes while the block runs."""
        point = await self._get(point_id)
        if point.state == pb.POINT_STATE_WRITING:
            raise SendenseError(
                Reason.REASON_POINT_INCOMPLETE,
                f"point {point.point_id} is not complete: job {point.job_id} writes it",
                point=point.point_id,
            )
        repository = self._workshop.repository(point.repository_name)
        # What is built upon cannot be deleted, so the point itself is all that needs a lock.
        with self._workshop.locks.reading([point.point_id]):
            await asyncio.to_thread(repository.space)  # an empty mount point is no damage
            try:
                yield repository, await asyncio.to_thread(repository.read_document, point.directory)
            except SendenseError as error:
                await remember_damage(self._workshop, point, error)
                raise
