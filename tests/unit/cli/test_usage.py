# SPDX-License-Identifier: Apache-2.0
"""Wrong usage, and what `up` reads out of the logs of what it starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sendense.hub.v1 import job_pb2 as pb
from sendense_cli import job_view, main, words
from sendense_cli.service_log import ServiceLog

pytestmark = pytest.mark.unit

_STOPS = "2026-01-01 00:00:00,000 ERROR sendense_common.service[7] sendense-hub stops: {}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["job", "list", "--limit", "many"], "--limit"),
        (["job", "show"], "JOB"),
        (["nonsense"], "nonsense"),
        (["up", "--repository", "here"], "NAME=PATH"),
        (["up", "--repository", "a=/x", "--repository", "a=/y"], "twice"),
        (["up", "--listen", "8022"], "HOST:PORT"),
        (["up", "--listen", "host:65536"], "HOST:PORT"),
    ],
)
def test_wrong_usage_is_told_as_json_where_that_is_asked_for(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sendense", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main.main()
    error = json.loads(capsys.readouterr().err)["error"]
    assert (ended.value.code, error["reason"]) == (2, "INVALID_REQUEST")
    assert says in error["message"]


@pytest.mark.parametrize("place", ["/proc/x", "a file"])
def test_a_state_directory_that_cannot_be_used_is_wrong_usage(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setattr(sys, "argv", ["sendense", "up", "--json", "--state", str(tmp_path / place)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 2
    assert place in json.loads(capsys.readouterr().err)["error"]["message"]


def test_only_what_was_said_since_this_start_is_told(tmp_path: Path) -> None:
    file = tmp_path / "hub.log"
    file.write_text(_STOPS.format("REPOSITORY_FULL: of an older start. x"))
    said = ServiceLog.from_now_on(file)
    assert (said.reason_to_stop(), said.trouble()) == ("", "")
    with file.open("a") as log:
        log.write("x INFO first\n" + _STOPS.format("SERVICE_UNAVAILABLE: another hub. Stop it."))
    assert (said.reason_to_stop(), said.trouble()) == ("", "another hub. Stop it.")
    with file.open("a") as log:
        log.write(_STOPS.format("REPOSITORY_UNAVAILABLE: no disk. Mount it."))
        log.write("x ERROR sendense_hub.supervisor.child[6] API died\n")
    assert said.reason_to_stop() == said.trouble() == "no disk. Mount it."


def test_a_job_that_never_ran_took_no_time_and_has_no_phase() -> None:
    job = pb.Job(state=pb.JOB_STATE_FAILED, ended_in_phase=pb.JOB_PHASE_QUEUED)
    assert (words.took(job), job_view.state_text(job).plain) == ("-", "failed")
