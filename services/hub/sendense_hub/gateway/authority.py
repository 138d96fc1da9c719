# SPDX-License-Identifier: Apache-2.0
"""Who may open what: the API decides, the gateway asks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1.authorization_service_pb2 import (
    AuthorizeRequest,
    IdentifyKeyRequest,
    ReportRefusalRequest,
    WatchRevocationsRequest,
    WatchRevocationsResponse,
)
from sendense.hub.v1.authorization_service_pb2_grpc import AuthorizationServiceStub
from sendense_common import rpc
from sendense_common.errors import SendenseError

# Calls wait for the API to come (back) for so long: a gateway that was started before it, or an API that is
# started again, would otherwise refuse agents until the channel's next try.
_ANSWER_WITHIN_S = 3.0
_DOING = "asking the hub's API for authorization"


class Authority:
    """The API's AuthorizationService. Raises `SendenseError`; only some mean "no" (`is_refusal`)."""

    def __init__(self, stub: AuthorizationServiceStub) -> None:
        self._stub = stub

    async def identify(self, fingerprint: str) -> str:
        """The agent ID of a key."""
        try:
            answer = await self._stub.IdentifyKey(
                IdentifyKeyRequest(fingerprint=fingerprint),
                timeout=_ANSWER_WITHIN_S,
                wait_for_ready=True,
            )
        except grpc.aio.AioRpcError as error:
            raise SendenseError.from_rpc(error, doing=_DOING) from error
        return answer.agent_id

    async def authorize(self, fingerprint: str, target: str) -> Path:
        """The socket that `target` means for this key."""
        try:
            answer = await self._stub.Authorize(
                AuthorizeRequest(fingerprint=fingerprint, target=target),
                timeout=_ANSWER_WITHIN_S,
                wait_for_ready=True,
            )
        except grpc.aio.AioRpcError as error:
            raise SendenseError.from_rpc(error, doing=_DOING) from error
        return Path(answer.socket_path)

    async def report(self, refusal: ReportRefusalRequest) -> None:
        """Has the API record what was refused."""
        try:
            await self._stub.ReportRefusal(refusal, timeout=_ANSWER_WITHIN_S, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise SendenseError.from_rpc(error, doing="reporting a refusal to the hub's API") from error

    async def revocations(self) -> AsyncIterator[WatchRevocationsResponse]:
        """What is no longer permitted, as it happens; ends when the API is gone."""
        try:
            async for revocation in self._stub.WatchRevocations(WatchRevocationsRequest()):
                yield revocation
        except grpc.aio.AioRpcError as error:
            raise SendenseError.from_rpc(error, doing=_DOING) from error


def is_refusal(error: SendenseError) -> bool:
    """Whether the authority said no; every other error means that it could not be asked."""
    return error.reason in {
        Reason.REASON_TUNNEL_REFUSED,
        Reason.REASON_SITE_NOT_FOUND,
        Reason.REASON_SITE_REVOKED,
    }


@contextlib.asynccontextmanager
async def connect(socket: Path) -> AsyncIterator[Authority]:
    """The authority behind a socket; it may come and go."""
    async with rpc.connect(socket) as channel:
        yield Authority(AuthorizationServiceStub(channel))
