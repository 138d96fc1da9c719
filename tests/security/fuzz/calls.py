# SPDX-License-Identifier: Apache-2.0
"""Calls every method that a socket serves with bytes of all kinds, and tells what went wrong."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import importlib
import pkgutil
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.security.fuzz.inputs import request

import sendense

_AT_ONCE = 24
_HANGS_AFTER_S = 60.0
_LISTENS_S = 0.03
_LARGEST = 64 * 1024 * 1024
_DEFECTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
# What this side says when it still wanted to send, and the service had answered already.
_HUNG_UP_FIRST = "Internal error from Core"
# They make what others list: first those that look, so that looking stays quick.
_LAST = ("Add", "Register", "Start", "Store", "Invite", "Enrol", "Create", "Issue")


@dataclass
class Outcome:
    """Of one method."""

    method: str
    inputs: int = 0
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    defects: list[str] = field(default_factory=list)


for _module in pkgutil.walk_packages(sendense.__path__, "sendense."):
    importlib.import_module(_module.name)  # makes its services known


async def methods_of(socket: Path) -> list[MethodDescriptor]:
    """Of all services of ours behind a socket, by reflection."""
    async with _channel(socket) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(list_services="")

        answers = [each async for each in stub.ServerReflectionInfo(ask())]
    names = [service.name for each in answers for service in each.list_services_response.service]
    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in sorted(names) if not name.startswith("grpc.")]
    found = [method for service in services for method in service.methods]
    return sorted(found, key=lambda method: method.name.startswith(_LAST))


async def fuzz(
    socket: Path, method: MethodDescriptor, inputs: int, seed: int, known: Sequence[str]
) -> Outcome:
    """Sends so many inputs to one method."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    outcome = Outcome(path)
    numbers = iter(range(inputs))
    async with _channel(socket) as channel:

        async def work() -> None:
            for number in numbers:
                rng = random.Random(f"{seed} {path} {number}")
                count = rng.choice((0, 1, 1, 2, 4)) if method.client_streaming else 1
                sent = [request(rng, method.input_type, known) for _ in range(count)]
                code, details = await _call(channel, path, method, sent)
                outcome.inputs += 1
                outcome.answers[code.name] += 1
                if code in _DEFECTS and details != _HUNG_UP_FIRST:
                    shown = " ".join(each[:300].hex() for each in sent)
                    outcome.defects.append(f"{path} input {number}: {code.name} {details}: {shown}")

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return outcome


async def _call(
    channel: Any, path: str, method: MethodDescriptor, sent: list[bytes]
) -> tuple[grpc.StatusCode, str]:
    async def stream() -> AsyncIterator[bytes]:
        for each in sent:
            yield each

    try:
        if not method.server_streaming:
            if method.client_streaming:
                await channel.stream_unary(path)(stream(), timeout=_HANGS_AFTER_S)
            else:
                await channel.unary_unary(path)(sent[0], timeout=_HANGS_AFTER_S)
            return grpc.StatusCode.OK, ""
        if method.client_streaming:
            call = channel.stream_stream(path)(stream(), timeout=_HANGS_AFTER_S)
        else:
            call = channel.unary_stream(path)(sent[0], timeout=_HANGS_AFTER_S)
        try:
            async with asyncio.timeout(_LISTENS_S):
                async for _ in call:
                    pass
        except TimeoutError:
            call.cancel()
            return grpc.StatusCode.CANCELLED, ""
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@contextlib.asynccontextmanager
async def _channel(socket: Path) -> AsyncIterator[Any]:
    options = [("grpc.max_send_message_length", _LARGEST), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        yield channel
