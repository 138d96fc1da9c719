# SPDX-License-Identifier: Apache-2.0
"""Serving gRPC on TCP, for operators: a caller says who it is; beyond this host it is TLS 1.3 or nothing.

Limits of a client, so that many or slow ones do not stop the others: a handshake has ten seconds, and so has
a request, of at most one mebibyte; 256 connections, more are closed at once; 64 calls of each connection and
256 in all; what is idle for five minutes is closed (clients connect again by themselves).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from grpc_health.v1 import health_pb2

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.rpc._caller import Identify
from sendense_common.rpc._options import server_options
from sendense_common.rpc._server import STOP_GRACE_S, Service, made
from sendense_common.rpc._tls import TlsFiles, check_files, refuses_older_versions, server_credentials

MOST_CONNECTIONS = 256
MOST_CALLS = 256
HANDSHAKE_WITHIN_S = 10
_OPTIONS = server_options(
    {
        "grpc.max_receive_message_length": 1 << 20,
        "grpc.max_concurrent_streams": 64,
        "grpc.max_allowed_incoming_connections": MOST_CONNECTIONS,
        "grpc.server_handshake_timeout_ms": HANDSHAKE_WITHIN_S * 1000,
        "grpc.max_connection_idle_ms": 5 * 60 * 1000,
        "grpc.max_metadata_size": 16 * 1024,
        # A second server on the same port would take half of the connections, unnoticed.
        "grpc.so_reuseport": 0,
    }
)


@dataclass(frozen=True)
class Listener:
    """Where operators connect."""

    host: str
    """An address or a name of this host."""
    port: int
    """0 takes a free one."""
    tls: TlsFiles | None = None
    """None: in the clear, on this host only."""

    def check(self) -> None:
        """Raises LISTENER_REFUSED when it may not be served like this, or cannot. Blocks."""
        self.address()
        if self.tls:
            check_files(self.tls)

    def address(self) -> str:
        """The address that is bound, as gRPC writes it. Blocks.

        Raises:
            SendenseError: LISTENER_REFUSED when it is no address, or others reach it and there is no TLS.
        """
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise self.refused(
                f"{self.host} is no address: {error.strerror}", "Give one of this host."
            ) from error
        addresses = [str(each[4][0]) for each in found]
        if self.tls is None and not all(ipaddress.ip_address(each).is_loopback for each in addresses):
            raise self.refused(
                "other hosts could reach it, and it would be in the clear",
                "Give --api-tls-certificate and --api-tls-key, or listen on 127.0.0.1.",
            )
        return f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]

    def refused(self, why: str, remedy: str) -> SendenseError:
        """LISTENER_REFUSED that says where."""
        return SendenseError(
            Reason.REASON_LISTENER_REFUSED,
            f"the API cannot be served on {self.host}:{self.port}: {why}",
            remedy=remedy,
        )


@contextlib.asynccontextmanager
async def serve_operators(
    listener: Listener, services: Sequence[Service], identify: Identify
) -> AsyncIterator[str]:
    """Serves until the block is left; gives `host:port` as it was bound.

    Args:
        listener: where.
        services: what to serve besides health, which answers everybody, and reflection, which does not.
        identify: says who calls; asked for every call, and every second again while a stream lasts.

    Raises:
        SendenseError: LISTENER_REFUSED.
    """
    host = await asyncio.to_thread(listener.address)
    server, servicer = await made(services, identify, _OPTIONS, most_calls=MOST_CALLS, strangers=True)
    try:
        if listener.tls:
            credentials = await asyncio.to_thread(server_credentials, listener.tls)
            port = server.add_secure_port(f"{host}:{listener.port}", credentials)
        else:
            port = server.add_insecure_port(f"{host}:{listener.port}")
    except RuntimeError as error:
        raise listener.refused(
            "the port is taken, or the address is not of this host", "Give another."
        ) from error
    await server.start()
    try:
        if listener.tls and not await asyncio.to_thread(refuses_older_versions, _reachable(host), port):
            raise listener.refused("it would talk TLS 1.2", "Start it with `sendense-hub`.")
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        yield f"{host}:{port}"
    finally:
        await servicer.enter_graceful_shutdown()
        await server.stop(STOP_GRACE_S)


def _reachable(host: str) -> str:
    """An address at which a process of this host finds what is bound to `host`."""
    bare = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bare, bare)  # noqa: S104
