# SPDX-License-Identifier: Apache-2.0
"""Whom the API lets in over TCP. Of a token only the SHA-256 is kept.

A password needs a slow hash with a salt, because it can be guessed. A token is 256 random bits: nobody
guesses one, no two are alike, and its SHA-256 leads nobody back to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense.common.v1.role_pb2 import Role
from sendense.hub.v1 import operator_service_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog.schema import operators
from sendense_hub.domain.times import now_us, to_timestamp

_WORDS = {pb.OPERATOR_KIND_TOKEN: "token", pb.OPERATOR_KIND_CERTIFICATE: "certificate"}


@dataclass(frozen=True)
class Operator:
    """One."""

    kind: pb.OperatorKind.ValueType
    name: str
    role: Role.ValueType
    token_sha256: bytes | None
    """Of a certificate: None."""
    create_time_us: int
    expire_time_us: int | None
    """None: never."""
    last_used_time_us: int | None = None

    @property
    def actor(self) -> str:
        """`token:ada`."""
        return f"{_WORDS[self.kind]}:{self.name}"

    def message(self) -> pb.Operator:
        """For an answer: without anything of the token."""
        return pb.Operator(
            kind=self.kind,
            name=self.name,
            role=self.role,
            create_time=to_timestamp(self.create_time_us),
            expire_time=to_timestamp(self.expire_time_us),
            last_used_time=to_timestamp(self.last_used_time_us),
        )


def add(connection: sa.Connection, operator: Operator) -> None:
    """Raises OPERATOR_EXISTS when there is one of that kind and name."""
    known = connection.execute(sa.select(operators).where(_is(operator.kind, operator.name))).one_or_none()
    if known is not None:
        expired = known.expire_time_us is not None and known.expire_time_us <= now_us()
        raise SendenseError(
            Reason.REASON_OPERATOR_EXISTS,
            f"there is a {_WORDS[operator.kind]} {operator.name!r} already"
            + (", expired" if expired else ""),
            remedy="Revoke it first, or take another name.",
            operator=operator.actor,
        )
    connection.execute(
        operators.insert().values(
            kind=operator.kind,
            name=operator.name,
            role=operator.role,
            token_sha256=operator.token_sha256,
            create_time_us=operator.create_time_us,
            expire_time_us=operator.expire_time_us,
        )
    )


def remove(connection: sa.Connection, kind: pb.OperatorKind.ValueType, name: str) -> None:
    """Raises OPERATOR_NOT_FOUND when there is none."""
    if connection.execute(operators.delete().where(_is(kind, name))).rowcount == 0:
        raise SendenseError(
            Reason.REASON_OPERATOR_NOT_FOUND,
            f"there is no {_WORDS[kind]} {name!r}",
            remedy="`sendense operator list` shows what there is.",
            operator=f"{_WORDS[kind]}:{name}",
        )


def note_use(connection: sa.Connection, kind: pb.OperatorKind.ValueType, name: str, time_us: int) -> None:
    """One that is gone in the meantime is left alone."""
    connection.execute(operators.update().where(_is(kind, name)).values(last_used_time_us=time_us))


def listed(connection: sa.Connection) -> list[Operator]:
    """All, by kind and name."""
    query = sa.select(operators).order_by(operators.c.kind, operators.c.name)
    return [
        Operator(
            kind=row.kind,
            name=row.name,
            role=row.role,
            token_sha256=row.token_sha256,
            create_time_us=row.create_time_us,
            expire_time_us=row.expire_time_us,
            last_used_time_us=row.last_used_time_us,
        )
        for row in connection.execute(query)
    ]


def _is(kind: pb.OperatorKind.ValueType, name: str) -> sa.ColumnElement[bool]:
    return sa.and_(operators.c.kind == kind, operators.c.name == name)
