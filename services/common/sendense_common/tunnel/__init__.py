# SPDX-License-Identifier: Apache-2.0
"""The SSH tunnel between agents and the hub.

`dial` and `keep_connected` are the agent's end. `PipeSet`, `connect_target`, `carry` and `PublishedSocket`
are what the hub's gateway builds its end from. Every process that moves bulk data through it calls
`tune_malloc` once, and runs on asyncio's own event loop.
"""

from sendense_common.tunnel._client import Forward, Tunnel, TunnelConfig, dial
from sendense_common.tunnel._keys import ensure_key, fingerprint
from sendense_common.tunnel._pipe import PipeSet, carry, connect_target
from sendense_common.tunnel._published_socket import Owner, PublishedSocket
from sendense_common.tunnel._reconnect import Backoff, keep_connected
from sendense_common.tunnel._wire import (
    ENCRYPTION,
    ENROLMENT_TARGET,
    ENROLMENT_USER,
    PACKET_BYTES,
    REVERSE_PATH,
    SUPERSEDED,
    WINDOW_BYTES,
    compression_algs,
    tune_malloc,
)

__all__ = [
    "ENCRYPTION",
    "ENROLMENT_TARGET",
    "ENROLMENT_USER",
    "PACKET_BYTES",
    "REVERSE_PATH",
    "SUPERSEDED",
    "WINDOW_BYTES",
    "Backoff",
    "Forward",
    "Owner",
    "PipeSet",
    "PublishedSocket",
    "Tunnel",
    "TunnelConfig",
    "carry",
    "compression_algs",
    "connect_target",
    "dial",
    "ensure_key",
    "fingerprint",
    "keep_connected",
    "tune_malloc",
]
