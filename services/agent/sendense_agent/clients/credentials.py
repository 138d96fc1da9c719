# SPDX-License-Identifier: Apache-2.0
"""Redeeming a lease: the one way a vCenter password reaches this site.

Call it in the operation's worker process only: what it returns stays in the process's memory until that ends.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.credential_service_pb2 import Endpoint, Secret
from sendense.credentials.v1.operation_pb2 import Operation
from sendense.credentials.v1.redemption_service_pb2 import RedeemLeaseRequest
from sendense.credentials.v1.redemption_service_pb2_grpc import RedemptionServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import NONCE_BYTES, AgentKeys, Redemption, open_sealed

_LOSS_IS_KNOWN_WITHIN_S = 2.0
_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Login:
    """What a vCenter asks for. `repr` shows nothing of it."""

    username: str = field(repr=False)
    """As the operator gave it."""
    password: str = field(repr=False)
    """As the operator gave it, to the byte."""
    endpoint: Endpoint | None = field(default=None, repr=False)
    """Where it may be sent, and nowhere else. None: it was stored before passwords were bound."""


async def redeem(
    socket: Path,
    keys: AgentKeys,
    *,
    agent_id: str,
    lease_id: str,
    credential_id: str,
    operation: Operation.ValueType,
    timeout_s: float = _TIMEOUT_S,
) -> Login:
    """Uses up a lease and returns what it opens. Not repeated: a lost answer needs a new lease.

    Args:
        socket: local end of the tunnel's "credentials".
        keys: this agent's.
        agent_id: this agent's ID, as it is registered with the credentials service.
        lease_id: from the hub.
        credential_id: what it opens, by the hub's word.
        operation: what the lease was issued for.
        timeout_s: for the whole exchange.

    Raises:
        SendenseError: LEASE_INVALID, LEASE_USED, LEASE_REVOKED, LEASE_EXPIRED, SIGNATURE_INVALID,
            AGENT_KEYS_REPLACED, CLOCKS_DIFFER, AGENT_UNKNOWN, CREDENTIAL_UNREADABLE; SERVICE_UNAVAILABLE or
            DEADLINE_EXCEEDED when there is no answer, TUNNEL_LOST when there is no way to it.
    """
    redemption = Redemption(
        lease_id=lease_id,
        credential_id=credential_id,
        agent_id=agent_id,
        operation=operation,
        sign_time_ns=time.time_ns(),
        nonce=secrets.token_bytes(NONCE_BYTES),
    )
    sign_time = Timestamp()
    sign_time.FromNanoseconds(redemption.sign_time_ns)
    request = RedeemLeaseRequest(
        lease_id=lease_id,
        credential_id=credential_id,
        agent_id=agent_id,
        operation=operation,
        sign_time=sign_time,
        nonce=redemption.nonce,
        signature=keys.sign(redemption.signed_bytes),
    )
    async with rpc.connect(socket) as channel:
        try:
            answer = await RedemptionServiceStub(channel).RedeemLease(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            failed = SendenseError.from_rpc(error, doing="redeeming a lease at the credentials service")
            if failed.reason == Reason.REASON_SERVICE_UNAVAILABLE and await _is_gone(socket):
                raise SendenseError(
                    Reason.REASON_TUNNEL_LOST,
                    "the tunnel to the hub was lost while a lease was redeemed at the credentials service",
                    remedy="It goes on with another lease when the site is connected again.",
                ) from error
            raise failed from error
    try:
        secret = Secret.FromString(open_sealed(answer.sealed_secret, keys, redemption))
    except DecodeError:
        raise SendenseError(
            Reason.REASON_CREDENTIAL_UNREADABLE,
            f"what lease {lease_id} opened is not a secret",
            remedy="Check that the agent and the credentials service are of one version.",
        ) from None
    bound = secret.endpoint if secret.HasField("endpoint") else None
    return Login(secret.username, secret.password, bound)


async def _is_gone(socket: Path) -> bool:
    """Whether the agent takes away its end of the tunnel, which may hear of the loss after a call does."""
    try:
        async with asyncio.timeout(_LOSS_IS_KNOWN_WITHIN_S):
            while socket.exists():  # noqa: ASYNC110 - another process removes it
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False
    return True
