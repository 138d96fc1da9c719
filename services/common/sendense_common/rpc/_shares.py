# SPDX-License-Identifier: Apache-2.0
"""So many calls at once for each site: one that floods a server waits for itself.

A site is known by the connection that its gateway has authenticated (`site_name`), never by what it says. A
call that is too many waits for one of its own site to end, then it is refused. It costs no more than that: it
gets no span, its request is not read, and it has no place among the calls that there may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc

from sendense_common import site_name
from sendense_common.rpc._handlers import answers, rewrapped

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Handler = grpc.RpcMethodHandler[Any, Any]


class TooManyError(Exception):
    """There are so many calls that this one is refused; says which, and what to do."""


class _Site:
    """One that makes calls now."""

    def __init__(self, calls: int) -> None:
        self.places = asyncio.Semaphore(calls)
        self.calls = 0
        """Also those that wait."""
        self.told = False


class Shares:
    """The calls of one server that are made now. Of a site that makes none, nothing is kept."""

    def __init__(self, calls: int, calls_per_site: int, wait_s: float) -> None:
        """Nobody calls yet.

        Args:
            calls: at once, of all together.
            calls_per_site: at once, of one site.
            wait_s: so long a call that is too many for its site waits for another of it to end.
        """
        self._calls = calls
        self._calls_per_site = calls_per_site
        self._wait_s = wait_s
        self._running = 0
        self._sites: dict[str, _Site] = {}

    @property
    def sites_count(self) -> int:
        """Sites that make calls now."""
        return len(self._sites)

    @contextlib.asynccontextmanager
    async def place(self, site: str) -> AsyncIterator[None]:
        """The block is a call of a site; empty: of a process of the installation, which has no share.

        Raises:
            TooManyError: the block is not entered.
        """
        async with self._own_place(site) if site else contextlib.nullcontext():
            if self._running >= self._calls:
                raise TooManyError(
                    f"there are {self._calls} calls at once, of all sites together; "
                    "try again when some of them have ended"
                )
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1

    @contextlib.asynccontextmanager
    async def _own_place(self, site: str) -> AsyncIterator[None]:
        mine = self._sites.setdefault(site, _Site(self._calls_per_site))
        mine.calls += 1
        try:
            try:
                async with asyncio.timeout(self._wait_s if mine.places.locked() else None):
                    await mine.places.acquire()
            except TimeoutError:
                raise self._too_many(site, mine) from None
            try:
                yield
            finally:
                mine.places.release()
        finally:
            mine.calls -= 1
            if not mine.calls:
                del self._sites[site]

    def _too_many(self, site: str, mine: _Site) -> TooManyError:
        text = f"site {site} makes {self._calls_per_site} calls at once, which is its share"
        if not mine.told:  # once until it makes none: it may go on for ever
            mine.told = True
            log.warning("%s: more are refused", text)
        return TooManyError(f"{text}; try again when some of them have ended")


class ShareInterceptor(grpc.aio.ServerInterceptor):
    """The outermost one. The code is that of gRPC itself for too many calls: RESOURCE_EXHAUSTED."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares

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
                async with self._admitted(context):
                    return await behaviour(request, context)

            return call

        def stream(behaviour: Any) -> Any:
            async def call(request: Any, context: Any) -> AsyncIterator[Any]:
                async with (
                    self._admitted(context),
                    contextlib.aclosing(answers(behaviour(request, context))) as responses,
                ):
                    async for response in responses:
                        yield response

            return call

        return rewrapped(handler, unary=unary, stream=stream)

    @contextlib.asynccontextmanager
    async def _admitted(self, context: Any) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._shares.place(site_name.of_peer(context.peer())))
            except TooManyError as error:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            yield
