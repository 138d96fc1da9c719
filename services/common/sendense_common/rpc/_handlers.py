# SPDX-License-Identifier: Apache-2.0
"""Putting something around a method's handler, whichever of gRPC's four kinds it has."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]


async def answers(made: AsyncGenerator[Any, None] | Awaitable[None]) -> AsyncGenerator[Any, None]:
    """What a behaviour with many answers answers; one that is no generator has given them to its context."""
    if isinstance(made, Awaitable):
        await made
        return
    async with contextlib.aclosing(made):
        async for answer in made:
            yield answer


def rewrapped(
    handler: Handler,
    *,
    unary: Callable[[Any], Any],
    stream: Callable[[Any], Any],
    reader: Callable[[Any], Any] = lambda read: read,
) -> Handler:
    """The same handler with `unary` around a behaviour with one answer, `stream` around one with many.

    `reader` is put around what makes a message of the bytes of a request.
    """
    read = reader(handler.request_deserializer)
    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(
            stream(handler.stream_stream), read, handler.response_serializer
        )
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            stream(handler.unary_stream), read, handler.response_serializer
        )
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(
            unary(handler.stream_unary), read, handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), read, handler.response_serializer)
