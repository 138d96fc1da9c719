# SPDX-License-Identifier: Apache-2.0
"""The log of this process, so that one line records an act wherever it is decided."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import sendense_common
from sendense_common import caller
from sendense_common.audit_log.catalogue import RIGHTS
from sendense_common.audit_log.log import USUAL_SIZES, AuditLog, Clock, Sizes
from sendense_common.audit_log.record import Outcome, Record
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed

log = logging.getLogger(__name__)

_open: list[AuditLog] = []


def system_clock() -> int:
    """Now, in microseconds since 1970."""
    return time.time_ns() // 1000


@contextlib.asynccontextmanager
async def opened(
    directory: Path,
    service: str,
    *,
    clock: Clock = system_clock,
    sizes: Sizes = USUAL_SIZES,
    **settings: object,
) -> AsyncIterator[AuditLog]:
    """Opens the log of this process's service for the block, which begins and ends with a record.

    Args: see `AuditLog`. `settings` are recorded with the start: they are read only then.

    Raises:
        SendenseError: see `AuditLog`; AUDIT_LOG_UNAVAILABLE when not even the start can be recorded.
    """
    made = await asyncio.to_thread(AuditLog, directory, service, clock=clock, sizes=sizes)
    _open.append(made)
    try:
        version = sendense_common.__version__
        started = _submit("service.start", service, "done", system_actor(), {"version": version, **settings})
        if started is not None:
            await asyncio.wrap_future(started)
        yield made
        await record("service.stop", subject=service, actor=system_actor(), version=version)
    finally:
        _open.remove(made)
        await asyncio.to_thread(made.close)


def current() -> AuditLog | None:
    """The log that `record` writes to."""
    return _open[-1] if _open else None


async def record(
    act: str, *, subject: str = "", outcome: Outcome = "done", actor: str | None = None, **facts: object
) -> None:
    """Records an act; on disk when it returns.

    Args:
        act: of `catalogue.ACTS`.
        subject: what it was done to: a name or an ID.
        outcome: how it ended.
        actor: who; None: who called this RPC.
        facts: more, short; see `facts.checked`.

    Raises:
        SendenseError: AUDIT_LOG_UNAVAILABLE, for an act that changes rights. Others are logged as an error,
            counted, and told by doctor.
    """
    await _written(act, outcome, _submit(act, subject, outcome, actor, facts))


def record_blocking(
    act: str, *, subject: str = "", outcome: Outcome = "done", actor: str | None = None, **facts: object
) -> None:
    """The same where nothing can be awaited: in a transaction, as the last thing before it commits."""
    written = _submit(act, subject, outcome, actor, facts)
    if written is not None:
        error = written.exception()
        _settle(act, outcome, error if isinstance(error, SendenseError) else None)


@contextlib.asynccontextmanager
async def recorded(
    act: str, *, subject: str = "", actor: str | None = None, **facts: object
) -> AsyncIterator[dict[str, object]]:
    """Records that the block began, and how it ended, also when it is cancelled.

    Args: see `record`. What is put into the dict that the block gets goes with the second record.

    Raises:
        SendenseError: AUDIT_LOG_UNAVAILABLE, for an act that changes rights, before the block begins.
    """
    who = actor or caller.actor()
    await record(act, subject=subject, outcome="begun", actor=who, **facts)
    more: dict[str, object] = {}
    outcome: Outcome = "failed"
    try:
        yield more
        outcome = "done"
    except SendenseError as error:
        more["reason"] = error.reason_name
        raise
    except (asyncio.CancelledError, GeneratorExit):
        more["reason"] = "CANCELLED"
        raise
    finally:
        written = _submit(act, subject, outcome, who, more, happened=True)
        await undisturbed(_written(act, outcome, written))


def system_actor() -> str:
    """Who it is when the service does something by itself: "system:hub"; an agent is "agent:<site>"."""
    to = current()
    return to.own_actor if to else "system"


def _submit(
    act: str,
    subject: str,
    outcome: Outcome,
    actor: str | None,
    facts: dict[str, object],
    *,
    happened: bool = False,
) -> Future[Record] | None:
    to = current()
    if to is None:
        log.info("no audit log is open: %s %s %s", act, subject, outcome)
        return None
    who = actor or caller.actor()
    return to.submit(act, subject=subject, outcome=outcome, actor=who, facts=facts, happened=happened)


async def _written(act: str, outcome: Outcome, written: Future[Record] | None) -> None:
    if written is not None:
        # Cancelled, the caller goes; the record is written all the same.
        _settle(act, outcome, await asyncio.shield(_ended(written)))


async def _ended(written: Future[Record]) -> SendenseError | None:
    try:
        await asyncio.wrap_future(written)
    except SendenseError as error:
        return error
    return None


def _settle(act: str, outcome: Outcome, error: SendenseError | None) -> None:
    if error is not None and act in RIGHTS and outcome in {"begun", "done"}:
        raise error
