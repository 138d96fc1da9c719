# SPDX-License-Identifier: Apache-2.0
"""OperatorService."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import sqlalchemy as sa

from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import operator_service_pb2 as pb
from sendense.hub.v1.operator_service_pb2_grpc import OperatorServiceServicer
from sendense_common import audit_log
from sendense_common.caller import caller
from sendense_common.errors import invalid
from sendense_common.rpc.roles import role_name
from sendense_common.undisturbed import undisturbed
from sendense_hub.catalog import Catalog, operators
from sendense_hub.catalog.operators import Operator
from sendense_hub.domain.times import now_us
from sendense_hub.rpc.admission import Admission

_Context = grpc.aio.ServicerContext[Any, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_ROLES = {Role.ROLE_VIEWER, Role.ROLE_OPERATOR, Role.ROLE_ADMIN}
_KINDS = {pb.OPERATOR_KIND_TOKEN, pb.OPERATOR_KIND_CERTIFICATE}
# What a token begins with, so that one that got lost is recognized for what it is.
_PREFIX = "sendense_"
_TOKEN_BYTES = 32
_DAY_S = 86_400
_LIFETIME_S, _LONGEST_LIFETIME_S = 90 * _DAY_S, 3653 * _DAY_S


class OperatorService(OperatorServiceServicer):
    """Whom the API lets in."""

    def __init__(self, catalog: Catalog, admission: Admission) -> None:
        self._catalog = catalog
        self._admission = admission

    async def GetCaller(self, request: pb.GetCallerRequest, context: _Context) -> pb.GetCallerResponse:
        """See the contract."""
        who = caller()
        return pb.GetCallerResponse(actor=who.actor, role=who.role)

    async def ListOperators(
        self, request: pb.ListOperatorsRequest, context: _Context
    ) -> pb.ListOperatorsResponse:
        """See the contract."""
        return pb.ListOperatorsResponse(operators=[each.message() for each in self._admission.all()])

    async def CreateToken(self, request: pb.CreateTokenRequest, context: _Context) -> pb.CreateTokenResponse:
        """See the contract."""
        token = _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
        now = now_us()
        operator = Operator(
            kind=pb.OPERATOR_KIND_TOKEN,
            name=_name(request.name),
            role=_role(request.role),
            token_sha256=hashlib.sha256(token.encode()).digest(),
            create_time_us=now,
            expire_time_us=now + _lifetime_us(request),
        )
        await self._add(operator, "token.create")
        return pb.CreateTokenResponse(operator=operator.message(), token=token)

    async def AddCertificate(
        self, request: pb.AddCertificateRequest, context: _Context
    ) -> pb.AddCertificateResponse:
        """See the contract."""
        operator = Operator(
            kind=pb.OPERATOR_KIND_CERTIFICATE,
            name=_name(request.name),
            role=_role(request.role),
            token_sha256=None,
            create_time_us=now_us(),
            expire_time_us=None,
        )
        await self._add(operator, "operator.change")
        return pb.AddCertificateResponse(operator=operator.message())

    async def RevokeOperator(
        self, request: pb.RevokeOperatorRequest, context: _Context
    ) -> pb.RevokeOperatorResponse:
        """See the contract."""
        kind, name = request.kind, _name(request.name)
        if kind not in _KINDS:
            raise invalid("kind", "must be a token or a certificate")

        def remove(connection: sa.Connection) -> None:
            operators.remove(connection, kind, name)
            if kind == pb.OPERATOR_KIND_TOKEN:
                audit_log.record_blocking("token.revoke", subject=name)
            else:
                audit_log.record_blocking("operator.change", subject=name, role="none")

        await self._change(remove)
        return pb.RevokeOperatorResponse()

    async def _add(self, operator: Operator, act: str) -> None:
        def add(connection: sa.Connection) -> None:
            operators.add(connection, operator)
            audit_log.record_blocking(act, subject=operator.name, role=role_name(operator.role))

        await self._change(add)

    async def _change(self, transaction: Callable[[sa.Connection], None]) -> None:
        """Does it, and lets the door know, also when the caller hangs up in between."""

        async def both() -> None:
            await self._catalog.run(transaction)
            await self._admission.load()

        await undisturbed(both())


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise invalid("name", f"{text[:80]!r} must be 1 to 63 letters, digits and . _ - @")
    return text


def _role(role: Role.ValueType) -> Role.ValueType:
    if role not in _ROLES:
        raise invalid("role", "must be viewer, operator or admin")
    return role


def _lifetime_us(request: pb.CreateTokenRequest) -> int:
    seconds = request.lifetime.seconds if request.HasField("lifetime") else _LIFETIME_S
    if not 1 <= seconds <= _LONGEST_LIFETIME_S:
        raise invalid("lifetime", "must be one second to ten years")
    return seconds * 1_000_000
