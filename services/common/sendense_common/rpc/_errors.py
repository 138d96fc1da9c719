# SPDX-License-Identifier: Apache-2.0
"""The one place where an exception of ours becomes a gRPC status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.rpc._handlers import answers, rewrapped

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


@dataclass(frozen=True)
class _Malformed:
    """Stands for a request whose bytes are no message of its type; gRPC itself would call that a defect."""

    kind: str

    @property
    def error(self) -> SendenseError:
        return SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"the bytes of the request are not {self.kind}",
            remedy="Call with a client that was made for this version's contract.",
        )


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
        return rewrapped(
            handler,
            unary=lambda behaviour: _guard_unary(behaviour, method),
            stream=lambda behaviour: _guard_stream(behaviour, method),
            reader=_lenient,
        )


def _lenient(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Of a message; what cannot be read becomes `_Malformed`, for the guards below."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            kind = getattr(getattr(deserialize, "__self__", None), "DESCRIPTOR", None)
            return _Malformed(f"a {kind.full_name}" if kind else "a message")

    return read


def _readable(request: Any) -> Any:
    """The request, or the stream of requests.

    Raises:
        SendenseError: INVALID_REQUEST when it, or the next one of the stream, could not be read.
    """
    if isinstance(request, _Malformed):
        raise request.error
    return _readable_each(request) if isinstance(request, AsyncIterable) else request


async def _readable_each(requests: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _readable(request)


def _guard_unary(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(_readable(request), context)
        except SendenseError as error:
            await _abort(context, error, method)
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception as error:  # noqa: BLE001 - logged by `_defect`
            await _abort(context, _defect(method, error), method)

    return call


def _guard_stream(behaviour: Any, method: str) -> Any:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            # Closed here and now, whatever ends the call: the collector might take its time.
            async with contextlib.aclosing(answers(behaviour(_readable(request), context))) as responses:
                async for response in responses:
                    yield response
        except asyncio.CancelledError:
            return  # the caller hung up or the server stops; gRPC would log it as a defect
        except SendenseError as error:
            await _abort(context, error, method)
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception as error:  # noqa: BLE001 - logged by `_defect`
            await _abort(context, _defect(method, error), method)

    return call


def _defect(method: str, error: Exception) -> SendenseError:
    """What the caller is told of a defect, which goes to the log."""
    log.error("defect in %s", method, exc_info=error)
    telemetry.defect(error)
    return SendenseError(
        Reason.REASON_INTERNAL,
        f"{method} failed unexpectedly",
        remedy="The log of the service has the details; please report them.",
    )


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: SendenseError, method: str) -> NoReturn:
    # Strangers could fill the log with these; the audit log has them, and not one by one.
    level = logging.DEBUG if error.reason == Reason.REASON_NOT_AUTHENTICATED else logging.INFO
    log.log(level, "%s answers %s", method, error)
    telemetry.refused(error)
    status = rpc_status.to_status(error.to_status())
    # grpc.aio has no abort_with_status: the details travel as the trailer it would have set.
    await context.abort(error.code, error.message, status.trailing_metadata)
    raise AssertionError("abort returned")  # pragma: no cover
