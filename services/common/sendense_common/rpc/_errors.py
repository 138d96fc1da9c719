# SPDX-License-Identifier: Apache-2.0
"""The one place where an exception of ours becomes a gRPC status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc_status import rpc_status

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps `SendenseError` to its code and ErrorInfo, and everything else to INTERNAL without details."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _guard_stream(handler.stream_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(
                _guard_unary(handler.stream_unary, method),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, method),
            handler.request_deserializer,
            handler.response_serializer,
        )


def _guard_unary(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except SendenseError as error:
            await _abort(context, error, method)
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception:
            log.exception("defect in %s", method)
            await _abort(context, _defect(method), method)

    return call


def _guard_stream(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            # Closed here and now, whatever ends the call: the collector might take its time.
            async with contextlib.aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except asyncio.CancelledError:
            return  # the caller hung up or the server stops; gRPC would log it as a defect
        except SendenseError as error:
            await _abort(context, error, method)
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception:
            log.exception("defect in %s", method)
            await _abort(context, _defect(method), method)

    return call


def _defect(method: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_INTERNAL,
        f"{method} failed unexpectedly",
        remedy="The log of the service has the details; please report them.",
    )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SendenseError, method: str) -> NoReturn:
    log.info("%s answers %s", method, error)
    status = rpc_status.to_status(error.to_status())
    # grpc.aio has no abort_with_status: the details travel as the trailer it would have set.
    await context.abort(error.code, error.message, status.trailing_metadata)
    raise AssertionError("abort returned")  # pragma: no cover
