# SPDX-License-Identifier: Apache-2.0
"""Calling gRPC on a unix socket, or on TCP with a token or a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.rpc._options import CLIENT_OPTIONS
from sendense_common.rpc._token import token_interceptors
from sendense_common.telemetry import client_interceptors


@contextlib.asynccontextmanager
async def connect(path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the server on a unix socket, traced and kept alive, closed at the end of the block."""
    channel = grpc.aio.insecure_channel(
        f"unix:{path}", options=CLIENT_OPTIONS, interceptors=client_interceptors()
    )
    try:
        yield channel
    finally:
        await channel.close()


@dataclass(frozen=True)
class Remote:
    """A server on TCP, and what this client shows it."""

    host: str
    port: int
    tls: bool
    """False: in the clear, which nothing but loopback should be."""
    ca_pem: bytes | None = None
    """Who may have signed the server's certificate; None: whom this computer trusts."""
    token: str = ""
    """Sent with each call."""
    certificate_pem: bytes | None = None
    """Of this client."""
    key_pem: bytes | None = None
    """Of that certificate."""


# A proxy of the environment would be handed what goes over an insecure channel, the token with it.
_NO_PROXY = (("grpc.enable_http_proxy", 0),)


@contextlib.asynccontextmanager
async def connect_remote(remote: Remote) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server on TCP, closed at the end of the block."""
    host = f"[{remote.host}]" if ":" in remote.host else remote.host
    target = f"dns:{host}:{remote.port}"
    interceptors = [*client_interceptors(), *token_interceptors(remote.token)]
    if remote.tls:
        credentials = grpc.ssl_channel_credentials(remote.ca_pem, remote.key_pem, remote.certificate_pem)
        channel = grpc.aio.secure_channel(
            target, credentials, options=CLIENT_OPTIONS, interceptors=interceptors
        )
    else:
        channel = grpc.aio.insecure_channel(
            target, options=[*CLIENT_OPTIONS, *_NO_PROXY], interceptors=interceptors
        )
    try:
        yield channel
    finally:
        await channel.close()


async def wait_healthy(path: Path, *, timeout_s: float, what: str) -> None:
    """Returns once the server on `path` says that it is serving.

    Args:
        path: the socket.
        timeout_s: how long to go on asking.
        what: the service's name, for the error.

    Raises:
        SendenseError: SERVICE_UNAVAILABLE when it does not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    last = "no answer"
    while time.monotonic() < deadline:
        if path.exists():
            async with connect(path) as channel:
                try:
                    answer = await health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
                        health_pb2.HealthCheckRequest(), timeout=2
                    )
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                    last = "it is not serving yet"
                except grpc.aio.AioRpcError as error:
                    last = error.details() or error.code().name
        await asyncio.sleep(0.05)
    raise SendenseError(
        Reason.REASON_SERVICE_UNAVAILABLE,
        f"{what} did not become ready within {timeout_s:.0f} s at {path}: {last}",
        remedy=f"Look at the log of {what}.",
    )
