# SPDX-License-Identifier: Apache-2.0
"""RepositoryService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from sendense.hub.v1 import repository_service_pb2 as pb
from sendense.hub.v1 import system_service_pb2
from sendense.hub.v1.repository_service_pb2_grpc import RepositoryServiceServicer
from sendense_common import audit_log, telemetry
from sendense_hub.catalog import points
from sendense_hub.domain.times import to_timestamp
from sendense_hub.jobs.intake import DEFAULT_REPOSITORY
from sendense_hub.jobs.repository_scan import RepositoryScan
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.repository import Repository
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]


class RepositoryService(RepositoryServiceServicer):
    """Shows and scans repositories."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def GetRepository(
        self, request: pb.GetRepositoryRequest, context: _Context
    ) -> pb.GetRepositoryResponse:
        """See the contract."""
        repository = self._named(request.name)
        space = await asyncio.to_thread(repository.space)
        found = await self._workshop.catalog.run(
            lambda connection: points.summary(connection, repository.name)
        )
        return pb.GetRepositoryResponse(
            repository=system_service_pb2.Repository(
                name=repository.name,
                path=str(repository.root),
                free_bytes=space.free_bytes,
                total_bytes=space.total_bytes,
            ),
            repository_id=repository.repository_id,
            points_count=found.points_count,
            chains_count=found.chains_count,
            virtual_machines_count=found.machines_count,
            stored_bytes=found.stored_bytes,
            newest_point_time=to_timestamp(found.newest_us),
        )

    async def ScanRepository(
        self, request: pb.ScanRepositoryRequest, context: _Context
    ) -> AsyncIterator[pb.ScanRepositoryResponse]:
        """See the contract."""
        repository = self._named(request.name)
        async with audit_log.recorded("repository.scan", subject=repository.name):
            with telemetry.span("scan repository", repository=repository.name):
                async for report in RepositoryScan(self._workshop, repository).run():
                    yield report

    def _named(self, name: str) -> Repository:
        checks.text("name", name, required=False)
        return self._workshop.repository(name or DEFAULT_REPOSITORY)
