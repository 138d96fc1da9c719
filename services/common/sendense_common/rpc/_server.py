# SPDX-License-Identifier: Apache-2.0
"""Serving gRPC on a unix socket with health, reflection, errors and traces."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sendense_common.rpc._errors import ErrorInterceptor
from sendense_common.rpc._options import SERVER_OPTIONS
from sendense_common.telemetry import server_interceptors

_STOP_GRACE_S = 2.0


@dataclass(frozen=True)
class Service:
    """A servicer and how it is added to a server.

    `Service("sendense.hub.v1.JobService", add_JobServiceServicer_to_server, servicer)`
    """

    name: str
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object


@contextlib.asynccontextmanager
async def serve(
    path: Path, services: Sequence[Service], *, stop_grace_s: float = _STOP_GRACE_S
) -> AsyncIterator[grpc.aio.Server]:
    """Serves on a unix socket that only this user can open, until the block is left.

    The socket appears under its name when the server answers, and replaces a stale one. Leaving the
    block gives calls `stop_grace_s` seconds, then cancels them, and removes the socket if it is ours.

    Args:
        path: the socket; the full path may have at most 107 bytes.
        services: what to serve besides health and reflection.
        stop_grace_s: seconds for running calls at the end.
    """
    server = grpc.aio.server(
        interceptors=[*server_interceptors(), ErrorInterceptor()], options=SERVER_OPTIONS
    )
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
    for service in services:
        service.add(service.servicer, server)
        names.append(service.name)
        await servicer.set(service.name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection(names, server)

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{hidden}")
        await server.start()
    finally:
        os.umask(mask)
    inode = hidden.stat().st_ino
    hidden.rename(path)
    try:
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        yield server
    finally:
        await servicer.enter_graceful_shutdown()
        await server.stop(stop_grace_s)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()
