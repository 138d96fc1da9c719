# SPDX-License-Identifier: Apache-2.0
"""A hub that does not answer: how a command that watches waits for it, and what others say."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import unanswered
from sendense_cli.patience import Patience
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

_AWAY = SendenseError(Reason.REASON_SERVICE_UNAVAILABLE, "the hub does not answer", remedy="Look.")


class Clock:
    """Moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.said: list[str] = []

    def patience(self, most_s: float = 300.0) -> Patience:
        return Patience(self.said.append, most_s=most_s, clock=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def test_a_hub_that_is_away_is_told_of_once_and_when_it_is_back():
    clock = Clock()
    patience = clock.patience()
    patience.heard()
    clock.now += 3600  # nothing new was heard for long: that is no absence
    for _ in range(20):
        await patience.wait(_AWAY)
    assert len(clock.said) == 1
    assert "the hub does not answer" in clock.said[0]
    assert "goes on there" in clock.said[0]
    assert "5m 00s" in clock.said[0]
    patience.heard()
    patience.heard()
    assert clock.said[1:] == ["the hub answers again"]
    await patience.wait(_AWAY)
    assert len(clock.said) == 3


async def test_a_hub_that_stays_away_is_waited_for_so_long_and_no_longer():
    clock = Clock()
    patience = clock.patience(most_s=60)
    began = clock.now
    for _ in range(120):
        await patience.wait(_AWAY)
    with pytest.raises(SendenseError) as told:
        await patience.wait(_AWAY)
    assert clock.now - began == 60
    assert told.value.reason == Reason.REASON_SERVICE_UNAVAILABLE
    assert "waited for 1m 00s" in told.value.message
    assert "Look." in told.value.remedy


@pytest.mark.parametrize("reason", [Reason.REASON_JOB_NOT_FOUND, Reason.REASON_NOT_AUTHENTICATED])
async def test_what_does_not_pass_is_not_waited_for(reason: Reason.ValueType):
    clock = Clock()
    with pytest.raises(SendenseError):
        await clock.patience().wait(SendenseError(reason, "no"))
    assert (clock.now, clock.said) == (1000.0, [])


@pytest.mark.parametrize(
    ("code", "details", "late", "says"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: UNKNOWN: unix:/x: "
         "connect: Connection refused (111)", False, "nobody answers"),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", False, "broke off"),
        (grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer", False, "broke off"),
        (grpc.StatusCode.CANCELLED, "CANCELLED", False, "broke off"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", False, "broke off"),
        (grpc.StatusCode.UNKNOWN, "Stream removed", False, "broke off"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", True, "in time"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", False, "many calls"),
    ],
)  # fmt: skip
def test_words_of_grpc_become_what_happened_where_and_what_to_do(
    code: grpc.StatusCode, details: str, late: bool, says: str, tmp_path: Path
):
    error = AioRpcError(code, Metadata(), Metadata(), details=details)
    socket, log = tmp_path / "api.sock", tmp_path / "hub.log"
    told = unanswered.told(error, what="the hub", where=str(socket), log=log)
    assert told.reason_name == ("DEADLINE_EXCEEDED" if late else "SERVICE_UNAVAILABLE")
    assert says in told.message
    assert str(socket) in told.message
    assert details not in told.message
    assert told.metadata["detail"] == details
    assert "`sendense doctor`" in told.remedy
    assert str(log) in told.remedy
    assert "`sendense job list`" in told.remedy  # what it has begun goes on


def test_words_of_the_hub_itself_stay_as_they_are():
    busy = SendenseError(Reason.REASON_VM_BUSY, "busy", remedy="Wait.", vm="web")
    status = busy.to_status()
    trailer = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = AioRpcError(busy.code, Metadata(), trailer, details=busy.message)
    told = unanswered.told(error, what="the hub", where="/x", log=Path("/x.log"))
    assert (told.reason, told.message, told.remedy) == (busy.reason, "busy", "Wait.")
