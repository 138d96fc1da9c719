# SPDX-License-Identifier: Apache-2.0
"""`sendense audit`: who did what, and whether that record can be believed."""

from __future__ import annotations

import datetime
import heapq
import itertools
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from sendense_cli import audit_logs, audit_view
from sendense_cli.audit_logs import Anchors
from sendense_cli.audit_revoked import KnownAgents
from sendense_cli.exits import Exit
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console
from sendense_common.audit_log import Anchor, Checker, Finding, Record, read
from sendense_common.audit_log.record import time_text
from sendense_common.errors import SendenseError

app = typer.Typer(no_args_is_help=True, help="Who did what: the audit logs of hub, credentials and agents.")

_UNITS = {"m": 60, "h": 3600, "d": 86400}


def _since(text: str) -> str:
    if text:
        _moment(text)
    return text


def _moment(text: str) -> datetime.datetime:
    """30m, 24h, 7d ago; or a date, or a date and time, which are local unless they say otherwise."""
    if ago := re.fullmatch(r"(\d{1,6})([mhd])", text):
        seconds = int(ago[1]) * _UNITS[ago[2]]
        return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r} is none of 30m, 24h, 7d, 2026-01-31, 2026-01-31T18:00") from None


def _expected(texts: list[str] | None) -> list[str]:
    for text in texts or ():
        log, sequence, digest = _split(text)
        if not log or not sequence.isdecimal() or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise typer.BadParameter(
                f"{text!r} is not LOG:SEQUENCE:HASH, as `sendense audit verify` prints it"
            )
    return texts or []


def _split(text: str) -> tuple[str, str, str]:
    before, _, digest = text.rpartition(":")
    log, _, sequence = before.rpartition(":")
    return log, sequence, digest


@app.command("show")
def show(
    service: Annotated[
        list[str] | None,
        typer.Option(metavar="LOG", help="hub, credentials or agent:SITE; several times for several."),
    ] = None,
    since: Annotated[
        str,
        typer.Option(metavar="WHEN", callback=_since, help="30m, 24h, 7d; or a date, or a date and time."),
    ] = "",
    act: Annotated[
        str, typer.Option(metavar="ACT", help="Only acts that begin so, as lease. or backup.start.")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="At most the newest N; 0: all.")] = 100,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Show who did what, the newest last; the logs of all services are merged by their clocks.

    Example: sendense audit show --since 24h --act credential.
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        wanted = None
        if since:
            wanted = Timestamp()
            wanted.FromDatetime(_moment(since))
        logs: list[deque[Record]] = []
        away: list[str] = []
        revoked: list[str] = []
        agents = await KnownAgents.asked(session)
        for log in service or _all_of(await audit_logs.names(session), agents.logs()):
            found: deque[Record] = deque(maxlen=limit or None)
            foreign = 0
            try:
                async for entry in audit_logs.entries(session, log, since=wanted, act_prefix=act):
                    if isinstance(entry, Record) and entry.service == log:
                        found.append(entry)
                    elif isinstance(entry, Record):
                        foreign += 1
            except SendenseError as error:
                if service:
                    raise
                is_revoked, why = agents.judge(log, error)
                (revoked if is_revoked else away).append(f"{log}: {why}")
            if foreign:  # a service speaks for itself alone
                away.append(f"{log}: records that say they are of another log: {foreign}; see `audit verify`")
            logs.append(found)
        # Each log stays in the order of its sequence, wherever its clock was set.
        records = list(heapq.merge(*logs, key=lambda record: record.time_us))[-limit:]
        if as_json:
            told = {"not_read": away, "revoked": revoked}
            session.answer({"records": [_as_json(record) for record in records], **told}, None)
        else:
            console.print(audit_view.records_table(records))
            for line in away:
                console.print(audit_view.not_read(line), soft_wrap=True)
            for line in revoked:
                console.print(audit_view.not_read(line, revoked=True), soft_wrap=True)
        return Exit.UNAVAILABLE if away else Exit.OK

    session.run(work())


@app.command("verify")
def verify(
    copies: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Copies of logs to look at, instead of those of the services."),
    ] = None,
    witness: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A copy of the catalog, as each repository has them: its heads are compared too.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOG:SEQUENCE:HASH",
            callback=_expected,
            help="A head that was printed before and kept elsewhere.",
        ),
    ] = None,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Compute the hashes of all logs anew, here, and name what was changed, removed, added or cut off.

    Exit code 1 when something is wrong, 5 when a log could not be read. The log of an agent that was revoked
    is not asked for any more: it is named, and does not count, when the credentials service has forgotten
    that agent too and neither --witness nor --expect has a head of its log. Keep the heads that are printed
    somewhere else: --expect compares them later.

    Example: sendense audit verify
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        known = [audit_logs.anchors_in(path) for path in witness or ()]
        for text in expect or ():
            log, sequence, digest = _split(text)
            known.append({log: [Anchor("you", int(sequence), bytes.fromhex(digest))]})
        if copies:
            results = [_of_copy(path, audit_logs.merged(known)) for path in copies]
        else:
            # Before the logs are read: what is seen of them later may be newer than what was read.
            anchors = audit_logs.merged([*known, await audit_logs.anchors(session)])
            agents, noted = await KnownAgents.asked(session), audit_logs.merged(known)
            # The hub alone does not say which logs there are.
            results = [
                await _of_service(session, log, anchors.get(log, []), agents, noted)
                for log in _all_of(await audit_logs.names(session), agents.logs(), noted)
            ]
        if as_json:
            session.answer({"logs": results}, None)
        else:
            for result in results:
                console.print(audit_view.result_lines(result), soft_wrap=True)
        if any(result["findings"] for result in results):
            return Exit.FAILED
        away = any(result["not_read"] and not result["revoked"] for result in results)
        return Exit.UNAVAILABLE if away else Exit.OK

    session.run(work())


@app.command("accept")
def accept(
    log: Annotated[str, typer.Argument(metavar="LOG", help="hub, credentials or agent:SITE.")],
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Take a log that is not the one that was seen before for right as it is, because you know why.

    As when its files were lost with a disk, or restored from a backup. What was seen before is recorded.

    Example: sendense audit accept agent:paris
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        accepted = await audit_logs.accept(session, log)
        words = "".join(f"{line}\n" for line in accepted) + "from now on it counts as it is"
        nothing = f"{log}: nothing contradicts it; nothing was changed"
        session.answer({"log": log, "accepted": accepted}, words if accepted else nothing)

    session.run(work())


def _all_of(*names: Iterable[str]) -> list[str]:
    """Each once, in this order."""
    return list(dict.fromkeys(itertools.chain(*names)))


async def _of_service(
    session: Session, log: str, anchors: list[Anchor], agents: KnownAgents, noted: Anchors
) -> dict[str, Any]:
    checker = Checker(anchors, of_log=log)
    try:
        async for entry in audit_logs.entries(session, log):
            checker.take(entry)
    except SendenseError as error:
        revoked, why = agents.judge(log, error, noted)
        return _not_read(log, why, checker, revoked=revoked)
    return _result(log, checker, anchors)


def _of_copy(directory: Path, anchors: Anchors) -> dict[str, Any]:
    first = next((entry for entry in read(directory) if isinstance(entry, Record)), None)
    if first is None:
        return _not_read(str(directory), "there is no record in it")
    checker = Checker(anchors.get(first.service, []))
    for entry in read(directory):
        checker.take(entry)
    return _result(first.service, checker, anchors.get(first.service, []))


def _not_read(log: str, why: str, checker: Checker | None = None, *, revoked: bool = False) -> dict[str, Any]:
    """What there is to say of a log that was not read, or not to its end."""
    return {
        "log": log,
        "records": checker.count if checker else 0,
        "findings": _findings(checker.findings(to_its_end=False)) if checker else [],
        "not_read": why,
        "revoked": revoked,
    }


def _findings(found: Iterable[Finding]) -> list[dict[str, Any]]:
    return [{"sequence": each.sequence, "problem": each.problem.value, "words": each.words} for each in found]


def _result(log: str, checker: Checker, anchors: list[Anchor]) -> dict[str, Any]:
    first, last = checker.first, checker.last
    return {
        "log": log,
        "records": checker.count,
        "first_sequence": first.sequence if first else 0,
        "head_sequence": last.sequence if last else 0,
        "head_hash": last.hash.hex() if last else "",
        "witnesses": sorted({anchor.witness for anchor in anchors}),
        "mended": checker.mended,
        "findings": _findings(checker.findings()),
        "not_read": "",
        "revoked": False,
    }


def _as_json(record: Record) -> dict[str, Any]:
    return {
        "log": record.service,
        "sequence": record.sequence,
        "time": time_text(record.time_us),
        "actor": record.actor,
        "act": record.act,
        "subject": record.subject,
        "outcome": record.outcome,
        "facts": dict(record.facts),
        "hash": record.hash.hex(),
    }
