# SPDX-License-Identifier: Apache-2.0
"""Reading audit logs: from the services, and from copies of their files."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from sendense.common.v1 import audit_log_service_pb2 as pb
from sendense.common.v1.audit_log_service_pb2_grpc import AuditLogServiceStub
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import credential_service_pb2
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import site_service_pb2
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_cli.session import Session
from sendense_common.audit_log import Anchor, Record, Unreadable
from sendense_common.audit_log.wire import from_entry
from sendense_common.errors import SendenseError

HUB, CREDENTIALS, AGENT = "hub", "credentials", "agent:"
_ASK_WITHIN_S = 15.0
_READ_WITHIN_S = 900.0

Anchors = dict[str, list[Anchor]]


async def names(session: Session) -> list[str]:
    """Of all logs that the hub says this installation has."""
    try:
        async with session.hub() as hub:
            request = site_service_pb2.ListSitesRequest()
            listed = await SiteServiceStub(hub).ListSites(request, timeout=_ASK_WITHIN_S)
            sites = [site.name for site in listed.sites]
    except SendenseError:
        sites = []  # asked for its own log, the hub will say why
    return [HUB, CREDENTIALS, *(f"{AGENT}{name}" for name in sites)]


async def known_agents(session: Session) -> list[str]:
    """The agents that the credentials service knows; the hub is not asked.

    Raises:
        SendenseError: it cannot be asked.
    """
    async with session.credentials() as channel:
        request = credential_service_pb2.ListAgentsRequest()
        answer = await CredentialServiceStub(channel).ListAgents(request, timeout=_ASK_WITHIN_S)
    return [each.agent_id for each in answer.agents]


async def entries(
    session: Session, log: str, *, since: Timestamp | None = None, act_prefix: str = ""
) -> AsyncIterator[Record | Unreadable]:
    """What is in a log, as its service reads it from its files.

    Raises:
        SendenseError: the service, or the site, cannot be reached.
    """
    request = pb.ListRecordsRequest(log=log, since_time=since, act_prefix=act_prefix)
    async with _serving(session, log) as channel:
        async for page in AuditLogServiceStub(channel).ListRecords(request, timeout=_READ_WITHIN_S):
            for entry in page.entries:
                yield from_entry(entry)


async def anchors(session: Session) -> Anchors:
    """Heads that the services have seen; what does not answer bears no witness."""
    found: Anchors = defaultdict(list)
    for service, witness in ((HUB, "the hub's catalog"), (CREDENTIALS, "the credentials database")):
        with contextlib.suppress(SendenseError):
            async with _serving(session, service) as channel:
                request = pb.ListHeadsRequest()
                answer = await AuditLogServiceStub(channel).ListHeads(request, timeout=_ASK_WITHIN_S)
                for head in answer.heads:
                    found[head.log].append(Anchor(witness, head.sequence, head.record_hash))
    return found


async def accept(session: Session, log: str) -> list[str]:
    """Has every service that has seen another log take this one for right: what each had found wrong."""
    found = []
    for service in (HUB, CREDENTIALS):
        async with _serving(session, service) as channel:
            stub = AuditLogServiceStub(channel)
            listed = await stub.ListHeads(pb.ListHeadsRequest(), timeout=_ASK_WITHIN_S)
            wrong = [each.contradiction for each in listed.heads if each.log == log and each.contradiction]
            if wrong:
                await stub.AcceptLog(pb.AcceptLogRequest(log=log), timeout=_ASK_WITHIN_S)
            found += [f"{service} had seen: {words}" for words in wrong]
    return found


def anchors_in(database: Path) -> Anchors:
    """Heads in a database: a copy of the catalog in a repository, or of the credentials database.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    found: Anchors = defaultdict(list)
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            for log, sequence, digest in opened.execute("SELECT log, sequence, record_hash FROM audit_heads"):
                found[log].append(Anchor(database.name, sequence, digest))
    except sqlite3.Error as error:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{database} has no heads of audit logs: {error}",
            remedy="Name a copy of the catalog: REPOSITORY/hub-catalogs has them.",
        ) from error
    return found


def merged(all_of_them: Iterable[Anchors]) -> Anchors:
    """All, by log."""
    found: Anchors = defaultdict(list)
    for each in all_of_them:
        for log, known in each.items():
            found[log] += known
    return found


@contextlib.asynccontextmanager
async def _serving(session: Session, log: str) -> AsyncIterator[grpc.aio.Channel]:
    async with session.credentials() if log == CREDENTIALS else session.hub() as channel:
        yield channel
