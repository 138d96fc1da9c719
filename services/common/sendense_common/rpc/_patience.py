# SPDX-License-Identifier: Apache-2.0
"""A request that does not come is not waited for.

gRPC waits for the one request of a call before it asks the handler anything, for ever: a few callers who send
none would use up all calls that there may be, before anybody has asked who they are. Here handlers take the
request as a stream: who calls is known first, and the request has to come soon. Nor does a stream of answers
last for ever where nobody needs one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.rpc._handlers import answers, rewrapped

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class PatienceInterceptor(grpc.aio.ServerInterceptor):
    """The innermost one: what is around it sees calls before their request is there."""

    def __init__(self, request_within_s: float) -> None:
        self._request_within_s = request_within_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def one(requests: AsyncIterator[Any], context: Any) -> Any:
            return await behaviour(await self._first(requests), context)

        async def many(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            request = await self._first(requests)
            async with contextlib.aclosing(answers(behaviour(request, context))) as responses:
                async for response in responses:
                    yield response

        read, write = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, read, write)
        return grpc.stream_unary_rpc_method_handler(one, read, write)

    async def _first(self, requests: AsyncIterator[Any]) -> Any:
        try:
            async with asyncio.timeout(self._request_within_s):
                return await anext(requests)
        except (TimeoutError, StopAsyncIteration):
            raise SendenseError(
                Reason.REASON_INVALID_REQUEST,
                f"no request came within {self._request_within_s:g} s",
                remedy="Send the request with the call.",
            ) from None


class EndInterceptor(grpc.aio.ServerInterceptor):
    """Within the one that maps errors, around all others: ends a call that takes too long for its answers."""

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None

        def unary(behaviour: Any) -> Any:
            async def call(request: Any, context: Any) -> Any:
                async with self._limited():
                    return await behaviour(request, context)

            return call

        def stream(behaviour: Any) -> Any:
            async def call(request: Any, context: Any) -> AsyncIterator[Any]:
                async with (
                    self._limited(),
                    contextlib.aclosing(answers(behaviour(request, context))) as responses,
                ):
                    async for response in responses:
                        yield response

            return call

        return rewrapped(handler, unary=unary, stream=stream)

    @contextlib.asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._within_s):
                yield
        except TimeoutError:
            raise SendenseError(
                Reason.REASON_DEADLINE_EXCEEDED, f"the call was not over within {self._within_s:g} s"
            ) from None
