# SPDX-License-Identifier: Apache-2.0
"""Contracts that another version would not understand fail `make lint`, by the target that it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.integration.docs.page import ROOT

pytestmark = pytest.mark.integration

LEASES = "sendense/credentials/v1/lease_service.proto"
REASONS = "sendense/common/v1/reason.proto"
JOBS = "sendense/hub/v1/job_service.proto"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Of all that the target needs."""
    shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("gen"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    return tmp_path


def make(directory: Path, target: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-C", str(directory), target]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def change(directory: Path, file: str, before: str, after: str) -> None:
    path = directory / "protos" / file
    text = path.read_text()
    assert before in text, f"{file} has no {before!r} any more: change the test"
    path.write_text(text.replace(before, after))


def test_the_contracts_break_nothing(copy: Path):
    done = make(copy, "protos-breaking")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "before", "after", "said"),
    [
        (LEASES, "string subject_id = 4;", "string subject_id = 9;", '"4"'),
        (LEASES, "string subject_id = 4;", "string purpose = 4;", '"subject_id"'),
        (LEASES, "string subject_id = 4;", "int64 subject_id = 4;", "int64"),
        (LEASES, "  string subject_id = 4;", "", '"4"'),
        (REASONS, "REASON_LEASE_USED = 201;", "REASON_LEASE_SPENT = 201;", "REASON_LEASE_USED"),
        (JOBS, "rpc GetJobTrace(", "rpc GetTrace(", '"GetJobTrace"'),
        (JOBS, "service JobService", "service WorkService", '"JobService"'),
    ],
    ids=["renumbered", "renamed", "retyped", "taken away", "another value", "a call gone", "a service gone"],
)
def test_what_another_version_would_not_understand_fails(
    copy: Path, file: str, before: str, after: str, said: str
):
    change(copy, file, before, after)
    done = make(copy, "protos-breaking")
    assert done.returncode != 0
    assert said in done.stdout
    assert "protos/README.md" in done.stdout
    kept = (copy / "protos/baseline.json").read_bytes()
    assert make(copy, "protos-baseline").returncode != 0
    assert (copy / "protos/baseline.json").read_bytes() == kept, "a break is not written over"


def test_what_is_added_and_what_is_reserved_breaks_nothing_and_is_in_the_next_baseline(copy: Path):
    reserved = 'reserved 4;\n  reserved "subject_id";\n  string purpose = 20;'
    change(copy, LEASES, "string subject_id = 4;", reserved)
    done = make(copy, "protos-baseline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"purpose"' in (copy / "protos/baseline.json").read_text()
    change(copy, LEASES, "string purpose = 20;", "string purpose = 21;")
    assert make(copy, "protos-breaking").returncode != 0


def test_without_a_baseline_nothing_passes(copy: Path):
    (copy / "protos/baseline.json").unlink()
    assert make(copy, "protos-breaking").returncode != 0


def test_the_baseline_can_be_read_and_is_of_a_size_that_may_be_committed():
    file = ROOT / "protos/baseline.json"
    assert file.stat().st_size < 500_000
    names = {each["name"] for each in json.loads(file.read_text())["file"]}
    assert {"sendense/hub/v1/job.proto", "sendense/agent/v1/backup.proto", REASONS, LEASES} <= names
