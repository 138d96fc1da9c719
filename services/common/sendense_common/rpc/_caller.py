# SPDX-License-Identifier: Apache-2.0
"""Who makes a call, and whether the role is enough for it.

A server is given an `Identify`; a unix socket's says that whoever opened it is the installation's own user,
unless a group may open it too.
In the handler of a call, and in the tasks it starts, `sendense_common.caller` says who that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.common.v1.role_pb2 import Role
from sendense_common import audit_log
from sendense_common.caller import Caller, answer
from sendense_common.errors import SendenseError
from sendense_common.rpc._handlers import answers, rewrapped
from sendense_common.rpc.roles import needed, role_name

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    _Handler = grpc.RpcMethodHandler[Any, Any]


_CHECK_EVERY_S = 1.0

Identify = Callable[["Context"], Awaitable[Caller]]
"""Says who makes the call of a context, or raises NOT_AUTHENTICATED."""


async def whoever_opened_the_socket(_: Context) -> Caller:
    """For sockets of mode 0600: only this process's user can open them (and root, whom nothing keeps out)."""
    return Caller(f"local:{os.getuid()}", Role.ROLE_SERVICE)


class CallerInterceptor(grpc.aio.ServerInterceptor):
    """Finds out who calls, refuses what the role does not include, and lets handlers know."""

    def __init__(self, identify: Identify, *, recheck_streams: bool = False) -> None:
        """`recheck_streams`: a stream ends within seconds when its caller would no longer be let in."""
        self._identify = identify
        self._recheck_streams = recheck_streams

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wraps the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None:  # first: what is kept of a method must not grow with names that callers invent
            return None
        role = needed(handler_call_details.method)
        if role is None:
            return handler
        method = handler_call_details.method.removeprefix("/")

        async def check(context: Context) -> Caller:
            try:
                who = await self._identify(context)
                _check(who, role, method)
            except SendenseError as error:
                actor = error.metadata.get("actor", "nobody")
                await audit_log.record(
                    "call.refuse",
                    subject=method,
                    outcome="refused",
                    actor=actor,
                    reason=error.reason_name,
                    peer=context.peer(),
                )
                raise
            return who

        def unary(behaviour: Any) -> Any:
            async def call(request: Any, context: Context) -> Any:
                answer(await check(context))
                return await behaviour(request, context)

            return call

        def stream(behaviour: Any) -> Any:
            async def call(request: Any, context: Context) -> AsyncIterator[Any]:
                answer(await check(context))
                watch = self._recheck_streams
                async with (
                    _while_admitted(lambda: check(context)) if watch else contextlib.nullcontext(),
                    contextlib.aclosing(answers(behaviour(request, context))) as responses,
                ):
                    async for response in responses:
                        yield response

            return call

        return rewrapped(handler, unary=unary, stream=stream)


def _check(who: Caller, role: Role.ValueType, method: str) -> None:
    if who.role >= role:
        return
    if role == Role.ROLE_SERVICE:
        remedy = "Only processes of the installation itself make this call."
    else:
        remedy = f"Use a token or certificate with the role {role_name(role)}; an admin makes one."
    raise SendenseError(
        Reason.REASON_NOT_PERMITTED,
        f"{who.actor} has the role {role_name(who.role)}; {method} needs {role_name(role)}",
        remedy=remedy,
        actor=who.actor,
        role=role_name(who.role),
        needed=role_name(role),
        method=method,
    )


@contextlib.asynccontextmanager
async def _while_admitted(check: Callable[[], Awaitable[Caller]]) -> AsyncIterator[None]:
    """Ends the block, which raises what `check` did, soon after that raises."""
    task = asyncio.current_task()
    assert task is not None
    refusal: SendenseError | None = None

    async def watch() -> None:
        nonlocal refusal
        while refusal is None:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                await check()
            except SendenseError as error:
                refusal = error
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if refusal is None:
            raise
        task.uncancel()
        raise refusal from None
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
