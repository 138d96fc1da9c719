# SPDX-License-Identifier: Apache-2.0
"""What becomes of failures that gRPC itself tells of."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("code", "details", "reason", "retryable"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", Reason.REASON_SERVICE_UNAVAILABLE, True),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Concurrent RPC limit exceeded!",
            Reason.REASON_SERVICE_UNAVAILABLE,
            True,
        ),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (5000 vs. 4096)",
            Reason.REASON_INTERNAL,
            False,
        ),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Sent message larger than max (5000 vs. 4096)",
            Reason.REASON_INTERNAL,
            False,
        ),
        (grpc.StatusCode.UNAVAILABLE, "gone", Reason.REASON_SERVICE_UNAVAILABLE, True),
        (grpc.StatusCode.DATA_LOSS, "odd", Reason.REASON_INTERNAL, False),
    ],
)
def test_too_many_calls_pass_and_too_large_messages_do_not(
    code: grpc.StatusCode, details: str, reason: Reason.ValueType, retryable: bool
) -> None:
    error = SendenseError.from_rpc(AioRpcError(code, Metadata(), Metadata(), details=details), doing="asking")
    assert (error.reason, error.retryable) == (reason, retryable)
    assert error.message.startswith("asking: ")
