# SPDX-License-Identifier: Apache-2.0
"""What `sendense audit` makes of logs that cannot be read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import audit_logs, main
from sendense_cli.session import Session
from sendense_common.audit_log import GENESIS, Record, Unreadable
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

_AWAY = SendenseError(Reason.REASON_SITE_OFFLINE, "the agent of site 'x' is not connected")
_REVOKED = SendenseError(Reason.REASON_SITE_REVOKED, "the key of site 'x' was revoked")


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], logs: dict[str, Any], *words: str
) -> tuple[int, str]:
    """Exit code and output of `sendense audit …`; of each log: the error that reading it ends with."""

    async def names(session: Session) -> list[str]:
        return list(logs)

    async def entries(session: Session, log: str, **of: object) -> AsyncIterator[Record | Unreadable]:
        if logs[log]:
            raise logs[log]
        made = Record(1, GENESIS, 1, log, "system:hub", "service.start", "", "done", {})
        yield dataclasses.replace(made, hash=made.digest())

    async def anchors(session: Session) -> audit_logs.Anchors:
        return {}

    for each in (names, entries, anchors):
        monkeypatch.setattr(audit_logs, each.__name__, each)
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
    ended, _ = run(monkeypatch, capsys, {"hub": None, **agents}, command)
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
