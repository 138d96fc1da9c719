# SPDX-License-Identifier: Apache-2.0
"""Channel options of both ends, in one place: they only work as a pair.

A client that pings more often than the server permits is cut off (GOAWAY too_many_pings), so the two lists
below belong together. 20 s finds a dead peer behind the tunnel well before an operator does.
"""

_PING_EVERY_MS = 20_000
_PING_TIMEOUT_MS = 10_000
# An agent's list of VMs and a point's configuration are the largest messages.
_MAX_MESSAGE_BYTES = 16 * 1024 * 1024

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _PING_EVERY_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_EVERY_MS // 2),
    ("grpc.max_metadata_size", 64 * 1024),
]


def server_options(own: dict[str, int]) -> list[tuple[str, int]]:
    """Those of a server, with values of its own: of two values gRPC would take the first."""
    return list({**dict(SERVER_OPTIONS), **own}.items())


CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 200),
    # gRPC gives a connection at least this long to be made, too: through a busy tunnel it needs that.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Unix sockets are named by path; every channel needs connections of its own to notice a new server.
    ("grpc.use_local_subchannel_pool", 1),
]
