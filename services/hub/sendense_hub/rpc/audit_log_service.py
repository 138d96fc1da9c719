# SPDX-License-Identifier: Apache-2.0
"""AuditLogService of the hub: its own log, and those of agents through the tunnel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from sendense.common.v1 import audit_log_service_pb2 as pb
from sendense.common.v1.audit_log_service_pb2_grpc import AuditLogServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.rpc.audit_log_service import AuditLogServicer
from sendense_hub.clients.sites import Sites
from sendense_hub.jobs.audit_watch import AuditWatch
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]
_AGENT = "agent:"
_WITHIN_S = 600.0


class AuditLogService(AuditLogServicer):
    """Shows logs; what an agent says is passed on as it is."""

    def __init__(self, watch: AuditWatch, sites: Sites) -> None:
        super().__init__(watch.own, watch.witness)
        self._sites = sites

    async def ListRecords(
        self, request: pb.ListRecordsRequest, context: _Context
    ) -> AsyncIterator[pb.ListRecordsResponse]:
        """See the contract."""
        if not request.log.startswith(_AGENT):
            async for page in super().ListRecords(request, context):
                yield page
            return
        site = checks.site("log", request.log.removeprefix(_AGENT))
        async with rpc.connect(self._sites.socket(site)) as channel:
            try:
                async for page in AuditLogServiceStub(channel).ListRecords(request, timeout=_WITHIN_S):
                    yield page
            except grpc.aio.AioRpcError as error:
                raise SendenseError.from_rpc(
                    error, doing=f"reading the audit log of site {site!r}"
                ) from error
