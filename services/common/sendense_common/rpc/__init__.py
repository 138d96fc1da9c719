# SPDX-License-Identifier: Apache-2.0
"""gRPC over unix sockets: one way to serve, one way to call, for all services."""

from sendense_common.rpc._client import connect, wait_healthy
from sendense_common.rpc._server import Service, serve

__all__ = ["Service", "connect", "serve", "wait_healthy"]
