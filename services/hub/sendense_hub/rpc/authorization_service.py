# SPDX-License-Identifier: Apache-2.0
"""AuthorizationService: what the gateways ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import authorization_service_pb2 as pb
from sendense.hub.v1.authorization_service_pb2_grpc import AuthorizationServiceServicer
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, sites
from sendense_hub.jobs.exports import ExportTable

_Context = grpc.aio.ServicerContext[Any, Any]
_NBD = "nbd/"


class AuthorizationService(AuthorizationServiceServicer):
    """A key may open the exports of its own site's running jobs, and the fixed names."""

    def __init__(self, catalog: Catalog, exports: ExportTable, fixed: dict[str, Path]) -> None:
        """Args: fixed: sockets that every agent may open, by name."""
        self._catalog = catalog
        self._exports = exports
        self._fixed = fixed

    async def IdentifyKey(self, request: pb.IdentifyKeyRequest, context: _Context) -> pb.IdentifyKeyResponse:
        """See the contract."""
        return pb.IdentifyKeyResponse(agent_id=await self._site(request.fingerprint))

    async def Authorize(self, request: pb.AuthorizeRequest, context: _Context) -> pb.AuthorizeResponse:
        """See the contract."""
        site = await self._site(request.fingerprint)
        if request.target.startswith(_NBD):
            socket = self._exports.socket(request.target.removeprefix(_NBD), site)
        else:
            socket = self._fixed.get(request.target)
        if socket is None:
            raise SendenseError(Reason.REASON_TUNNEL_REFUSED, f"site {site!r} may not open it now", site=site)
        return pb.AuthorizeResponse(socket_path=str(socket))

    async def ReportRefusal(
        self, request: pb.ReportRefusalRequest, context: _Context
    ) -> pb.ReportRefusalResponse:
        """See the contract."""
        who = f"agent:{request.agent_id}" if request.agent_id else f"unproven:{request.claimed_agent_id}"
        facts: dict[str, Any] = {"left_out": request.left_out_count} if request.left_out_count else {}
        await audit_log.record(
            "tunnel.refuse",
            subject=request.target,
            outcome="refused",
            actor=who,
            ssh_fingerprint=request.fingerprint,
            address=request.address,
            request=request.request,
            cause=request.cause,
            **facts,
        )
        return pb.ReportRefusalResponse()

    async def WatchRevocations(
        self, request: pb.WatchRevocationsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchRevocationsResponse]:
        """See the contract."""
        async with self._exports.listen() as ended:
            while True:
                gone = await ended.get()
                yield pb.WatchRevocationsResponse(fingerprint=gone.fingerprint, target=gone.target)

    async def _site(self, fingerprint: str) -> str:
        return await self._catalog.run(lambda connection: sites.by_fingerprint(connection, fingerprint))
