# SPDX-License-Identifier: Apache-2.0
"""RedemptionService, for agents."""

from __future__ import annotations

from typing import Any

import grpc

import sendense.credentials.v1.redemption_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.redemption_service_pb2_grpc import RedemptionServiceServicer
from sendense_common.errors import SendenseError, invalid
from sendense_common.keys import NONCE_BYTES, Redemption
from sendense_credentials.domain.agent import check_agent_id
from sendense_credentials.rpc.wire import to_ns, to_operation, to_uuid
from sendense_credentials.vault import LeaseVault

_Context = grpc.aio.ServicerContext[Any, Any]


class RedemptionServicer(RedemptionServiceServicer):
    """Opens leases, once each."""

    def __init__(self, vault: LeaseVault) -> None:
        self._vault = vault

    async def RedeemLease(self, request: pb.RedeemLeaseRequest, context: _Context) -> pb.RedeemLeaseResponse:
        """Answers with the sealed secret."""
        if len(request.nonce) != NONCE_BYTES:
            raise invalid("nonce", f"must have {NONCE_BYTES} bytes")
        if not request.credential_id:
            raise SendenseError(
                Reason.REASON_VERSION_NOT_SUPPORTED,
                "the agent is of a version that would log in wherever the hub says",
                remedy="Upgrade the agent.",
            )
        redemption = Redemption(
            lease_id=to_uuid("lease_id", request.lease_id),
            credential_id=to_uuid("credential_id", request.credential_id),
            agent_id=check_agent_id(request.agent_id),
            operation=to_operation(request.operation),
            sign_time_ns=to_ns("sign_time", request.sign_time),
            nonce=request.nonce,
        )
        sealed = await self._vault.redeem(redemption, request.signature)
        return pb.RedeemLeaseResponse(sealed_secret=sealed)
