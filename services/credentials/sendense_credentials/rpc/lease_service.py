# SPDX-License-Identifier: Apache-2.0
"""LeaseService, for the hub."""

from __future__ import annotations

from typing import Any

import grpc

import sendense.credentials.v1.lease_service_pb2 as pb
from sendense.credentials.v1.lease_service_pb2_grpc import LeaseServiceServicer
from sendense_common.errors import invalid
from sendense_credentials.domain.agent import check_agent_id
from sendense_credentials.rpc.wire import from_us, to_operation, to_uuid
from sendense_credentials.vault import LeaseVault

_Context = grpc.aio.ServicerContext[Any, Any]

_SUBJECT_CHARACTERS = 128


class LeaseServicer(LeaseServiceServicer):
    """Issues leases and ends them. No secret passes here."""

    def __init__(self, vault: LeaseVault) -> None:
        self._vault = vault

    async def IssueLease(self, request: pb.IssueLeaseRequest, context: _Context) -> pb.IssueLeaseResponse:
        """Issues a lease."""
        if len(request.subject_id) > _SUBJECT_CHARACTERS or not request.subject_id.isprintable():
            raise invalid("subject_id", f"must have at most {_SUBJECT_CHARACTERS} printable characters")
        lease = await self._vault.issue(
            to_uuid("credential_id", request.credential_id),
            check_agent_id(request.agent_id),
            to_operation(request.operation),
            request.subject_id,
        )
        return pb.IssueLeaseResponse(lease_id=lease.lease_id, expire_time=from_us(lease.expire_time_us))

    async def RevokeLease(self, request: pb.RevokeLeaseRequest, context: _Context) -> pb.RevokeLeaseResponse:
        """Ends a lease that was not redeemed."""
        await self._vault.revoke(to_uuid("lease_id", request.lease_id))
        return pb.RevokeLeaseResponse()
