# SPDX-License-Identifier: Apache-2.0
"""What is said when a call got no answer of a service: gRPC's own words tell nobody what to do."""

from __future__ import annotations

from pathlib import Path

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_NOBODY = ("failed to connect", "Connection refused", "No such file")
_BROKEN = ("RST_STREAM", "Stream removed", "GOAWAY", "Socket closed", "reset by peer", "Broken pipe")
TRY_AGAIN = (
    "If it is starting again, try once more in a moment; jobs that it has begun go on by themselves: "
    "`sendense job list`."
)


def told(error: grpc.aio.AioRpcError, *, what: str, where: str, log: Path) -> SendenseError:
    """The error behind a call that failed.

    Args:
        error: what the call raised. When the service said why itself, that is the answer.
        what: the service, as "the hub".
        where: its socket.
        log: of the service, if `sendense up` runs it.
    """
    mine = SendenseError.from_rpc(error, doing=f"asking {what}")
    why = _why(error)
    if "grpc_code" not in mine.metadata or not why:
        return mine
    late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    return SendenseError(
        Reason.REASON_DEADLINE_EXCEEDED if late else Reason.REASON_SERVICE_UNAVAILABLE,
        f"{what} {why} at {where}",
        remedy=f"{TRY_AGAIN} Else `sendense doctor` says what runs, and the log of the service why: {log}, "
        "with `sendense up`.",
        detail=error.details(),
    )


def broken_off(error: grpc.aio.AioRpcError) -> bool:
    """Whether the other end went away in the middle of the call."""
    details = error.details() or ""
    match error.code():
        case grpc.StatusCode.CANCELLED:  # by a server that stops; a call that we cancel raises no such error
            return True
        case grpc.StatusCode.UNAVAILABLE:
            return not any(words in details for words in _NOBODY)
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN:
            return any(words in details for words in _BROKEN)
    return False


def broken_in_words(error: grpc.aio.AioRpcError) -> bool:
    """The same, where other words may stand for a connection that was never made."""
    said = any(words in (error.details() or "") for words in _BROKEN)
    return broken_off(error) and (said or error.code() != grpc.StatusCode.UNAVAILABLE)


def _why(error: grpc.aio.AioRpcError) -> str:
    """What it did; empty when that is no question of whether it answers."""
    if broken_off(error):
        return "broke off the call"
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return "does not run: nobody answers"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return "did not answer in time"
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "message larger" not in (error.details() or ""):
            return "has too many calls at once"
    return ""
