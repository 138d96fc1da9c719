# SPDX-License-Identifier: Apache-2.0
"""gRPC over unix sockets, and TCP for operators: one way to serve, one way to call, for all services."""

from sendense_common.caller import Caller, acting_as, actor, caller
from sendense_common.rpc._bounds import AGENTS, STRANGERS, Bounds
from sendense_common.rpc._caller import Identify
from sendense_common.rpc._client import Remote, connect, connect_remote, wait_healthy
from sendense_common.rpc._listener import Listener, serve_operators
from sendense_common.rpc._server import Service, serve
from sendense_common.rpc._tls import TlsFiles, only_tls_1_3, valid_until

__all__ = [
    "AGENTS",
    "STRANGERS",
    "Bounds",
    "Caller",
    "Identify",
    "Listener",
    "Remote",
    "Service",
    "TlsFiles",
    "acting_as",
    "actor",
    "caller",
    "connect",
    "connect_remote",
    "only_tls_1_3",
    "serve",
    "serve_operators",
    "valid_until",
    "wait_healthy",
]
