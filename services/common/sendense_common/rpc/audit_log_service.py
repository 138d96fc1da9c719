# SPDX-License-Identifier: Apache-2.0
"""AuditLogService, as each service serves it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc

from sendense.common.v1 import audit_log_service_pb2 as pb
from sendense.common.v1.audit_log_service_pb2_grpc import (
    AuditLogServiceServicer,
    add_AuditLogServiceServicer_to_server,
)
from sendense_common.audit_log.heads import Witness
from sendense_common.audit_log.log import AuditLog
from sendense_common.audit_log.record import Record
from sendense_common.audit_log.segments import Unreadable
from sendense_common.audit_log.wire import to_entry, to_time
from sendense_common.errors import invalid
from sendense_common.rpc._server import Service

_Context = grpc.aio.ServicerContext[Any, Any]
_NAME = "sendense.common.v1.AuditLogService"
_PAGE = 500


class AuditLogServicer(AuditLogServiceServicer):
    """One log."""

    def __init__(self, log: AuditLog, witness: Witness | None = None, *, head_only: bool = False) -> None:
        """What is served.

        Args:
            log: of this service.
            witness: of this service, if it keeps heads.
            head_only: for a socket whose callers only bear witness: they see the head and no record.
        """
        self._log = log
        self._witness = witness
        self._head_only = head_only

    async def GetHead(self, request: pb.GetHeadRequest, context: _Context) -> pb.GetHeadResponse:
        """See the contract."""
        head, failure = self._log.head, self._log.failure
        known = await asyncio.to_thread(self._log.hash_of, request.known_sequence)
        return pb.GetHeadResponse(
            head=pb.AuditHead(
                log=self._log.service,
                sequence=head.sequence,
                record_hash=head.hash,
                seen_time=to_time(self._log.now_us()),
            ),
            known_hash=known,
            failure=failure,
        )

    async def ListHeads(self, request: pb.ListHeadsRequest, context: _Context) -> pb.ListHeadsResponse:
        """See the contract."""
        answer = pb.ListHeadsResponse()
        for seen in await self._witness.heads() if self._witness else ():
            answer.heads.add(
                log=seen.log,
                sequence=seen.sequence,
                record_hash=seen.hash,
                seen_time=to_time(seen.seen_time_us),
                contradiction=seen.contradiction,
            )
        return answer

    async def AcceptLog(self, request: pb.AcceptLogRequest, context: _Context) -> pb.AcceptLogResponse:
        """See the contract."""
        known = {seen.log for seen in await self._witness.heads()} if self._witness else set()
        if self._witness is None or request.log not in known:
            raise invalid("log", f"{request.log[:80]!r} is none that was seen here")
        await self._witness.accept(request.log)
        return pb.AcceptLogResponse()

    async def ListRecords(
        self, request: pb.ListRecordsRequest, context: _Context
    ) -> AsyncIterator[pb.ListRecordsResponse]:
        """See the contract."""
        if self._head_only or request.log not in {"", self._log.service}:
            raise invalid("log", f"{request.log[:80]!r} is not here")
        entries = _wanted(self._log.entries(), request)
        while page := await asyncio.to_thread(_page, entries):
            yield pb.ListRecordsResponse(entries=page)


def served(servicer: AuditLogServicer) -> Service:
    """For `rpc.serve`."""
    return Service(_NAME, add_AuditLogServiceServicer_to_server, servicer)


def _wanted(
    entries: Iterator[Record | Unreadable], request: pb.ListRecordsRequest
) -> Iterator[pb.AuditEntry]:
    try:
        since_us = request.since_time.ToMicroseconds() if request.HasField("since_time") else None
    except ValueError:
        raise invalid("since_time", "is no moment between the years 1 and 9999") from None
    for entry in entries:
        if isinstance(entry, Record):
            if (since_us is not None and entry.time_us < since_us) or not entry.act.startswith(
                request.act_prefix
            ):
                continue
        elif since_us is not None or request.act_prefix:
            continue
        yield to_entry(entry)


def _page(entries: Iterator[pb.AuditEntry]) -> list[pb.AuditEntry]:
    return list(itertools.islice(entries, _PAGE))
