# SPDX-License-Identifier: Apache-2.0
"""What one who is not trusted may use of a server: others use it too."""

from __future__ import annotations

from dataclasses import dataclass

from sendense_common.rpc._options import server_options


@dataclass(frozen=True)
class Bounds:
    """Of one server."""

    message_bytes: int
    """Of a request."""
    calls: int
    """At once, of all callers; one more is refused with RESOURCE_EXHAUSTED."""
    calls_per_connection: int
    """At once, far less than `calls`: one connection does not use up all of them."""
    request_within_s: float
    """So soon the request of a call has to be there."""
    call_within_s: float
    """So soon its answer is made."""
    connection_for_s: float = 60.0
    """Then it is closed, with calls whose callers do not take the answer; who is honest connects again."""
    bare: bool = False
    """Neither health nor reflection is served."""
    calls_per_site: int | None = None
    """At once, of all connections of a site together; one more waits up to `request_within_s` for one of them
    to end, and is refused like one that is too many of all. None: callers have no site."""

    @property
    def options(self) -> list[tuple[str, int]]:
        """Of the server."""
        return server_options(
            {
                "grpc.max_receive_message_length": self.message_bytes,
                "grpc.max_concurrent_streams": self.calls_per_connection,
                "grpc.max_metadata_size": 16 * 1024,
                "grpc.max_connection_age_ms": int(self.connection_for_s * 1000),
                "grpc.max_connection_age_grace_ms": int(self.call_within_s * 1000),
            }
        )


# A gateway lets in 8 strangers, who open 2 channels each at the most: a call on each, for 4 gateways.
STRANGERS = Bounds(4 * 1024, 64, 1, request_within_s=3.0, call_within_s=30.0, bare=True)
"""For callers whom nobody knows yet."""

# Each of an agent's processes has a connection of its own.
AGENTS = Bounds(1 << 20, 256, 4, request_within_s=5.0, call_within_s=30.0, calls_per_site=16)
"""For agents that are enrolled: any may have been taken over. Spans are the largest that they send."""
