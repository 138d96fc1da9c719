# SPDX-License-Identifier: Apache-2.0
"""What `sendense audit` makes of logs that cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import audit_logs, main
from sendense_cli.audit_revoked import KnownAgents
from sendense_cli.remote import Hub
from sendense_cli.session import Session
from sendense_common.audit_log import GENESIS, Record, Unreadable
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

_AWAY = SendenseError(Reason.REASON_SITE_OFFLINE, "the agent of site 'x' is not connected")
_REVOKED = SendenseError(Reason.REASON_SITE_REVOKED, "the key of site 'x' was revoked")


_UNASKED = SendenseError(Reason.REASON_SERVICE_UNAVAILABLE, "the credentials service does not run")
_KNOWN = ["paris"]  # to the credentials service; it has forgotten `old`


def record(log: str, sequence: int = 1, previous: bytes = GENESIS, *, right: bool = True) -> Record:
    made = Record(sequence, previous, 1, log, "system:hub", "service.start", "", "done", {})
    return dataclasses.replace(made, hash=made.digest() if right else bytes(32))


def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    logs: dict[str, Any],
    *words: str,
    known: list[str] | SendenseError = _KNOWN,
    sent: dict[str, list[Record | Unreadable]] | None = None,
) -> tuple[int, str]:
    """Exit code and output of `sendense audit …`.

    Args:
        monkeypatch: of the test.
        capsys: of the test.
        logs: of each that the hub names: the error that reading it ends with.
        words: of the command line.
        known: the agents that the credentials service knows, or why it cannot be asked.
        sent: what comes of a log before the error; one record if it is not here and there is no error.
    """

    async def names(session: Session) -> list[str]:
        return [each for each in logs if each != "agent:hidden"]

    async def known_agents(session: Session) -> list[str]:
        if isinstance(known, SendenseError):
            raise known
        return known

    async def entries(session: Session, log: str, **of: object) -> AsyncIterator[Record | Unreadable]:
        for entry in (sent or {}).get(log, [] if logs[log] else [record(log)]):
            yield entry
        if logs[log]:
            raise logs[log]

    async def anchors(session: Session) -> audit_logs.Anchors:
        return {}

    for each in (names, known_agents, entries, anchors):
        monkeypatch.setattr(audit_logs, each.__name__, each, raising=False)
    monkeypatch.setattr(sys, "argv", ["sendense", "audit", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0), capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "show"])
@pytest.mark.parametrize(
    ("agents", "code"),
    [
        ({"agent:old": _REVOKED}, 0),
        ({"agent:paris": _AWAY}, 5),
        ({"agent:old": _REVOKED, "agent:paris": _AWAY}, 5),
        ({"agent:paris": SendenseError(Reason.REASON_SERVICE_UNAVAILABLE, "it broke off")}, 5),
    ],
)
def test_a_log_that_cannot_be_read_is_exit_code_5_but_of_a_revoked_agent(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    agents: dict[str, Any],
    code: int,
    command: str,
):
    logs = {"hub": None, "agent:paris": None, **agents}
    ended, _ = run(monkeypatch, capsys, logs, command)
    assert ended == code


def test_the_log_of_a_revoked_agent_is_said_to_be_not_verified(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    logs = {"hub": None, "agent:old": _REVOKED, "agent:paris": _AWAY}
    _, told = run(monkeypatch, capsys, logs, "verify")
    assert "revoked, not verified agent:old: the key of site 'x' was revoked" in told
    assert "not read agent:paris" in told
    _, told = run(monkeypatch, capsys, logs, "verify", "--json")
    found = {each["log"]: each for each in json.loads(told)["logs"]}
    assert [each["revoked"] for each in found.values()] == [False, True, False]
    assert found["agent:old"]["not_read"] == _REVOKED.message
    _, told = run(monkeypatch, capsys, logs, "show")
    assert "revoked, not read agent:old" in told


@pytest.mark.parametrize("command", ["verify", "show"])
@pytest.mark.parametrize(
    ("log", "known", "why"),
    [
        ("hub", _KNOWN, ""),
        ("credentials", _KNOWN, ""),
        ("agent:paris", _KNOWN, "the credentials service knows its agent"),
        ("agent:old", _UNASKED, "the credentials service does not run"),
    ],
)
def test_a_hub_that_was_taken_over_hides_no_log_by_saying_that_it_was_revoked(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    log: str,
    known: list[str] | SendenseError,
    why: str,
    command: str,
):
    logs = {"hub": None, "agent:paris": None, log: _REVOKED}
    code, told = run(monkeypatch, capsys, logs, command, known=known)
    assert code == 5
    assert f"not read {log}: " in told
    assert "revoked, not" not in told
    assert why in told


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_where_the_credentials_service_cannot_be_asked_nobody_counts_as_revoked(
    tmp_path: Path, elsewhere: bool
):
    session = Session(tmp_path, as_json=False)
    if elsewhere:
        session.elsewhere = Hub("hub.example.net:8443")
    agents = await KnownAgents.asked(session)
    revoked, words = agents.judge("agent:old", _REVOKED)
    assert not revoked
    assert ("it needs the credentials service, which has no port" in words) == elsewhere
    assert ("the credentials service does not run" in words) != elsewhere


def test_a_log_whose_head_was_noted_down_has_to_be_read_revoked_or_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    logs = {"hub": None, "agent:paris": None, "agent:old": _REVOKED}
    noted = "--expect", f"agent:old:7:{'ab' * 32}"
    code, told = run(monkeypatch, capsys, logs, "verify", *noted)
    assert (code, "a head of it is given" in told) == (5, True)
    copy = tmp_path / "catalog.sqlite"
    with contextlib.closing(sqlite3.connect(copy)) as made:
        made.execute("CREATE TABLE audit_heads (log TEXT, sequence INTEGER, record_hash BLOB)")
        made.execute("INSERT INTO audit_heads VALUES ('agent:old', 7, ?)", [bytes(32)])
        made.commit()
    assert run(monkeypatch, capsys, logs, "verify", "--witness", str(copy))[0] == 5
    # Of another log it says nothing about this one.
    assert run(monkeypatch, capsys, logs, "verify", "--expect", f"hub:1:{record('hub').hash.hex()}")[0] == 0


def test_a_log_that_the_hub_does_not_name_is_asked_for_where_others_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    logs = {"hub": None, "agent:hidden": _AWAY}
    for command in ("verify", "show"):
        assert run(monkeypatch, capsys, logs, command, known=["hidden"])[0] == 5
    assert (
        run(monkeypatch, capsys, logs, "verify", "--expect", f"agent:hidden:7:{'ab' * 32}", known=[])[0] == 5
    )
    assert run(monkeypatch, capsys, logs, "verify", known=[])[0] == 0


@pytest.mark.parametrize(("log", "error"), [("agent:old", _REVOKED), ("agent:paris", _AWAY), ("hub", _AWAY)])
def test_what_is_wrong_with_records_that_came_before_the_error_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: str, error: SendenseError
):
    logs = {"hub": None, "agent:paris": None, log: error}
    sent: dict[str, list[Record | Unreadable]] = {log: [record(log, right=False)]}
    code, told = run(monkeypatch, capsys, logs, "verify", sent=sent)
    assert code == 1
    assert f"WRONG {log}: 1 place is wrong; records read: 1\n  record 1: changed: its hash" in told
    assert f"{log}: {error.message}" in told
    code, told = run(monkeypatch, capsys, logs, "verify", "--json", sent=sent)
    (found,) = [each for each in json.loads(told)["logs"] if each["log"] == log]
    assert (found["records"], [each["problem"] for each in found["findings"]]) == (1, ["changed"])


@pytest.mark.parametrize(
    "begun",
    [
        [record("hub"), Unreadable(b"of a crash")],  # `log.mended` would have come
        [record("hub", 5, bytes(32))],  # `log.discarded` would have come
        [],
    ],
    ids=["torn", "discarded", "nothing"],
)
def test_what_was_not_sent_before_the_error_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: list[Record | Unreadable]
):
    sent = {"hub": begun}
    noted = "--expect", f"hub:7:{'ab' * 32}"
    code, told = run(monkeypatch, capsys, {"hub": _AWAY, "agent:paris": None}, "verify", *noted, sent=sent)
    assert (code, "WRONG" in told) == (5, False)
