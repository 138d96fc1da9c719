# SPDX-License-Identifier: Apache-2.0
"""A lease that cannot be redeemed: a tunnel that is gone is told from a service that does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense.credentials.v1.redemption_service_pb2_grpc import (
    RedemptionServiceServicer,
    add_RedemptionServiceServicer_to_server,
)
from sendense_agent.clients import credentials
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import ensure_agent_keys

pytestmark = pytest.mark.integration


class Away(RedemptionServiceServicer):
    """Answers as a service does whose process goes away; `socket` goes a little later."""

    def __init__(self, socket: Path, *, tunnel: bool) -> None:
        self._socket = socket
        self._tunnel = tunnel

    async def RedeemLease(self, request: Any, context: Any) -> Any:
        if self._tunnel:
            asyncio.get_running_loop().call_later(0.3, self._socket.unlink)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


async def refusal(socket: Path, directory: Path) -> SendenseError:
    with pytest.raises(SendenseError) as refused:
        await credentials.redeem(
            socket,
            ensure_agent_keys(directory / "keys.pem"),
            agent_id="paris",
            lease_id="lease",
            credential_id="credential",
            operation=Operation.OPERATION_BACKUP,
        )
    return refused.value


async def test_without_the_tunnels_end_the_tunnel_is_lost(short_tmp: Path):
    error = await refusal(short_tmp / "none.sock", short_tmp)
    assert error.reason == Reason.REASON_TUNNEL_LOST
    assert "goes on" in error.remedy


@pytest.mark.parametrize(
    ("tunnel", "reason"),
    [(True, Reason.REASON_TUNNEL_LOST), (False, Reason.REASON_SERVICE_UNAVAILABLE)],
    ids=["the tunnel breaks", "the service ends"],
)
async def test_a_call_that_breaks_off(
    short_tmp: Path, tunnel: bool, reason: Reason.ValueType, monkeypatch: pytest.MonkeyPatch
):
    if not tunnel:
        monkeypatch.setattr(credentials, "_LOSS_IS_KNOWN_WITHIN_S", 0.2)
    socket = short_tmp / "way.sock"
    name = "sendense.credentials.v1.RedemptionService"
    servicer = Away(socket, tunnel=tunnel)
    one = rpc.Service(name, add_RedemptionServiceServicer_to_server, servicer)
    async with rpc.serve(short_tmp / "s.sock", [one], stop_grace_s=0):
        socket.symlink_to(short_tmp / "s.sock")
        error = await refusal(socket, short_tmp)
    assert error.reason == reason
