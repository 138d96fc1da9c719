# SPDX-License-Identifier: Apache-2.0
"""Who calls the API over TCP: the owner of a token, or of a certificate that gRPC has verified.

All operators are in memory: a caller without rights costs the catalog nothing. What is looked up is the
SHA-256 of what was sent, so the time it takes says nothing about the tokens that there are.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import Callable
from typing import Any

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import operator_service_pb2 as pb
from sendense_common.caller import Caller
from sendense_common.errors import SendenseError
from sendense_hub.catalog import Catalog, operators
from sendense_hub.catalog.operators import Operator
from sendense_hub.domain.times import now_us

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]
_Key = tuple[pb.OperatorKind.ValueType, str]
_SCHEME = "bearer"
_LONGEST_TOKEN_CHARS = 256
_USE_IS_NOTED_EVERY_US = 10 * 60 * 1_000_000
# A wrong token is answered late; of many at once only so many, for each of them stays open until then.
_WRONG_WAITS_S = 0.5
_MOST_WAIT = 32


class Admission:
    """The operators that there are now. One for the hub's life."""

    def __init__(self, catalog: Catalog, clock_us: Callable[[], int] = now_us) -> None:
        self._catalog = catalog
        self._clock_us = clock_us
        self._by_key: dict[_Key, Operator] = {}
        self._by_digest: dict[bytes, Operator] = {}
        self._waiting = 0
        self._notes: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Reads all from the catalog: at the start, and after each change."""
        listed = await self._catalog.run(operators.listed)
        self._by_key = {(each.kind, each.name): each for each in listed}
        self._by_digest = {each.token_sha256: each for each in listed if each.token_sha256 is not None}

    def all(self) -> list[Operator]:
        """By kind and name."""
        return list(self._by_key.values())

    async def identify(self, context: _Context) -> Caller:
        """Who makes a call. With a token and a certificate, it is the token that counts.

        Raises:
            SendenseError: NOT_AUTHENTICATED.
        """
        sent = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if sent:
            found = self._by_digest.get(_digest(sent))
            if found is None:
                await self._wait()
                raise _not_authenticated("the token is not valid", "Is it whole, and was it not revoked?")
        else:
            found = self._owner_of_certificate(context)
        now = self._clock_us()
        if found.expire_time_us is not None and found.expire_time_us <= now:
            raise _not_authenticated(
                f"the {_words(found)} has expired", "An admin makes a new one.", found.actor
            )
        if now - (found.last_used_time_us or 0) > _USE_IS_NOTED_EVERY_US:
            self._note(found, now)
        return Caller(found.actor, found.role)

    def _owner_of_certificate(self, context: _Context) -> Operator:
        names = list(context.auth_context().get("x509_common_name", ()))
        if len(names) != 1:
            raise _not_authenticated(
                "no token was sent" if not names else "the certificate has several common names",
                "Send one as `authorization: Bearer …`; `sendense` takes it from --token-file.",
            )
        name = names[0].decode(errors="replace")
        found = self._by_key.get((pb.OPERATOR_KIND_CERTIFICATE, name))
        if found is None:
            raise _not_authenticated(
                f"nobody let the certificate {name[:64]!r} in, and no token was sent",
                "An admin lets it in with `sendense operator certificate add NAME --role viewer`.",
            )
        return found

    async def _wait(self) -> None:
        if self._waiting < _MOST_WAIT:
            self._waiting += 1
            try:
                await asyncio.sleep(_WRONG_WAITS_S)
            finally:
                self._waiting -= 1

    def _note(self, operator: Operator, now: int) -> None:
        """Puts the use down, without keeping the call waiting."""
        used = dataclasses.replace(operator, last_used_time_us=now)
        self._by_key[operator.kind, operator.name] = used
        if used.token_sha256 is not None:
            self._by_digest[used.token_sha256] = used

        async def write() -> None:
            try:
                await self._catalog.run(
                    lambda connection: operators.note_use(connection, operator.kind, operator.name, now)
                )
            except SendenseError as error:
                log.warning("when %s was used could not be noted: %s", operator.actor, error)

        task = asyncio.create_task(write())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)


def _digest(sent: list[str | bytes]) -> bytes:
    """SHA-256 of the one token that was sent; of what is none, something that nobody has."""
    if len(sent) != 1 or not isinstance(sent[0], str) or len(sent[0]) > _LONGEST_TOKEN_CHARS:
        return b""
    scheme, _, token = sent[0].partition(" ")
    return hashlib.sha256(token.strip().encode()).digest() if scheme.lower() == _SCHEME else b""


def _words(operator: Operator) -> str:
    return operator.actor.replace(":", " ")


def _not_authenticated(what: str, remedy: str, actor: str = "nobody") -> SendenseError:
    return SendenseError(Reason.REASON_NOT_AUTHENTICATED, what, remedy=remedy, actor=actor)
