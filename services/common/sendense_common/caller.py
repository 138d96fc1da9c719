# SPDX-License-Identifier: Apache-2.0
"""Who asked for what is being done: set where a call comes in, read where something has to say who it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from sendense.common.v1.role_pb2 import Role


@dataclass(frozen=True)
class Caller:
    """Who asks for something."""

    actor: str
    """As "local", "local:<uid>", "token:<name>" or "certificate:<name>"."""
    role: Role.ValueType = Role.ROLE_SERVICE
    """What the caller may do. Where no call is being answered, everything."""


_LOCAL = Caller("local")
_caller: ContextVar[Caller] = ContextVar("sendense_caller", default=_LOCAL)


def caller() -> Caller:
    """Who asked for what is being done."""
    return _caller.get()


def actor() -> str:
    """As "local", "local:<uid>", "token:<name>" or "certificate:<name>"."""
    return _caller.get().actor


@contextlib.contextmanager
def acting_as(who: str) -> Iterator[None]:
    """The block is done for `who`; tasks and catalog transactions that it starts too."""
    before = _caller.set(Caller(who))
    try:
        yield
    finally:
        _caller.reset(before)


def answer(who: Caller) -> None:
    """What this task does from now on is done for `who`. For calls: each is answered in a task of its own."""
    _caller.set(who)
