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

from sendense_common.errors import SendenseError
from sendense_common.paths import open_to_group
from sendense_common.rpc._bounds import Bounds
from sendense_common.rpc._caller import CallerInterceptor, Identify, whoever_opened_the_socket
from sendense_common.rpc._errors import ErrorInterceptor
from sendense_common.rpc._options import SERVER_OPTIONS
from sendense_common.rpc._patience import EndInterceptor, PatienceInterceptor
from sendense_common.rpc._shares import ShareInterceptor, Shares
from sendense_common.telemetry import server_interceptors

STOP_GRACE_S = 2.0
_REQUEST_WITHIN_S = 10.0
# Calls that wait for their site's share, or are being refused: a gateway lets a site have 64 channels to a
# server, with 4 calls each. Each costs some kilobytes; what there is above that gRPC itself refuses.
_MOST_THAT_WAIT = 4096


@dataclass(frozen=True)
class Service:
    """A servicer and how it is added to a server.

    `Service("sendense.hub.v1.JobService", add_JobServiceServicer_to_server, servicer)`
    """

    name: str
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: object


async def made(
    services: Sequence[Service],
    identify: Identify,
    options: Sequence[tuple[str, int]],
    *,
    most_calls: int | None = None,
    strangers: bool = False,
    bounds: Bounds | None = None,
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """A server that is not started, and what says of it that it serves.

    `strangers` may call it: requests must come soon, and a caller who is no longer let in loses open streams.
    `bounds` does so too, and has its own options and number of calls.
    """
    bare = False
    shares: list[grpc.aio.ServerInterceptor] = []
    ends: list[grpc.aio.ServerInterceptor] = []
    patient: list[grpc.aio.ServerInterceptor] = []
    if bounds:
        options, most_calls, bare = bounds.options, bounds.calls, bounds.bare
        ends = [EndInterceptor(bounds.call_within_s)]
        patient = [PatienceInterceptor(bounds.request_within_s)]
        if bounds.calls_per_site is not None:
            per_site = Shares(bounds.calls, bounds.calls_per_site, bounds.request_within_s)
            shares, most_calls = [ShareInterceptor(per_site)], bounds.calls + _MOST_THAT_WAIT
    elif strangers:
        patient = [PatienceInterceptor(_REQUEST_WITHIN_S)]
    interceptors = [
        *shares,
        *server_interceptors(),
        ErrorInterceptor(),
        *ends,
        CallerInterceptor(identify, recheck_streams=strangers),
        *patient,
    ]
    server = grpc.aio.server(
        interceptors=interceptors,
        options=options,
        maximum_concurrent_rpcs=most_calls,
    )
    servicer = health.aio.HealthServicer()
    if not bare:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
    for service in services:
        service.add(service.servicer, server)
        names.append(service.name)
        await servicer.set(service.name, health_pb2.HealthCheckResponse.SERVING)
    if not bare:
        reflection.enable_server_reflection(names, server)
    return server, servicer


@contextlib.asynccontextmanager
async def serve(
    path: Path,
    services: Sequence[Service],
    *,
    stop_grace_s: float = STOP_GRACE_S,
    identify: Identify = whoever_opened_the_socket,
    bounds: Bounds | None = None,
    group: int | None = None,
) -> AsyncIterator[grpc.aio.Server]:
    """Serves on a unix socket that only this user (and `group`) can open, until the block is left.

    The socket appears under its name when the server answers, and replaces a stale one. Leaving the
    block gives calls `stop_grace_s` seconds, then cancels them, and removes the socket if it is ours.

    Args:
        path: the socket; the full path may have at most 107 bytes.
        services: what to serve besides health and reflection.
        stop_grace_s: seconds for running calls at the end.
        identify: says who calls.
        bounds: for callers who are not trusted: `STRANGERS` or `AGENTS`.
        group: number of a group whose members may call too; give an `identify` that says who they are.

    Raises:
        SendenseError: INVALID_REQUEST when this user is not in the group.
    """
    server, servicer = await made(services, identify, SERVER_OPTIONS, bounds=bounds)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{hidden}")
        await server.start()
    finally:
        os.umask(mask)
    if group is not None:
        try:
            open_to_group(hidden, group, 0o660)
        except SendenseError:
            await server.stop(0)
            raise
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
