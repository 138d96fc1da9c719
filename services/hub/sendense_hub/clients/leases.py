# SPDX-License-Identifier: Apache-2.0
"""Leases from the credentials service. No secret passes here."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from sendense.credentials.v1 import lease_service_pb2 as pb
from sendense.credentials.v1 import operation_pb2
from sendense.credentials.v1.lease_service_pb2_grpc import LeaseServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_DEADLINE_S = 10.0
_GIVE_BACK_WITHIN_S = 2.0


class Leases:
    """Issues leases at one credentials service."""

    def __init__(self, socket: Path) -> None:
        """Args: socket: the one for hubs."""
        self._socket = socket

    async def issue(
        self,
        credential_id: str,
        agent_id: str,
        operation: operation_pb2.Operation.ValueType,
        subject_id: str,
    ) -> str:
        """A lease of `credential_id` for one `operation` of one agent: its ID.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND, AGENT_UNKNOWN, CREDENTIAL_NOT_GRANTED, or
                SERVICE_UNAVAILABLE.
        """
        request = pb.IssueLeaseRequest(
            credential_id=credential_id, agent_id=agent_id, operation=operation, subject_id=subject_id
        )
        async with rpc.connect(self._socket) as channel:
            try:
                answer = await LeaseServiceStub(channel).IssueLease(request, timeout=_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                raise SendenseError.from_rpc(
                    error, doing="asking the credentials service for a lease"
                ) from error
        return answer.lease_id

    async def give_back(self, lease_id: str) -> None:
        """Ends a lease that was not used; one that was used is as it was. If this fails, it expires."""
        try:
            async with rpc.connect(self._socket) as channel:
                request = pb.RevokeLeaseRequest(lease_id=lease_id)
                await LeaseServiceStub(channel).RevokeLease(request, timeout=_GIVE_BACK_WITHIN_S)
        except grpc.aio.AioRpcError as error:
            log.info("lease %s is not given back: %s", lease_id, error.details())
