# SPDX-License-Identifier: Apache-2.0
"""A log that is written by a process: killed, asked by many at once, opened twice."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.audit_log.kit import no_room, records

from sendense_common import audit_log
from sendense_common.audit_log import Checker, Finding, Record
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

_WRITER = """
import itertools, sys
from pathlib import Path
from sendense_common.audit_log import AuditLog
log = AuditLog(Path(sys.argv[1]), "hub", clock=itertools.count(1).__next__)
for number in itertools.count():
    several = [log.submit("backup.start", subject=f"{number}-{each}", outcome="done", actor="local", facts={})
               for each in range(5)]
    for written in several:
        record = written.result()
        print(record.sequence, record.hash.hex(), flush=True)
"""


def check(directory: Path) -> tuple[list[Finding], dict[int, str]]:
    """What is wrong, and all hashes by sequence."""
    checker, hashes = Checker(), {}
    for entry in audit_log.read(directory):
        checker.take(entry)
        if isinstance(entry, Record):
            hashes[entry.sequence] = entry.hash.hex()
    return checker.findings(), hashes


def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    acknowledged: dict[int, str] = {}
    for life in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 7 * life):
                sequence, digest = writer.stdout.readline().split()
                acknowledged[int(sequence)] = digest
            writer.kill()
            for line in writer.stdout:  # what it had said before it died
                if line.endswith("\n"):
                    sequence, digest = line.split()
                    acknowledged[int(sequence)] = digest
    with contextlib.closing(audit_log.AuditLog(tmp_path, "hub", clock=lambda: 1)) as log:
        written = log.submit("job.cancel", subject="", outcome="done", actor="local", facts={})
        assert written is not None
        written.result()
    findings, hashes = check(tmp_path)
    assert findings == []
    assert acknowledged.items() <= hashes.items()
    assert len(acknowledged) > 100


async def test_two_hundred_acts_at_once_are_one_chain(tmp_path: Path) -> None:
    async with audit_log.opened(tmp_path, "hub") as log:
        await asyncio.gather(
            *(audit_log.record("backup.start", subject=str(number)) for number in range(100)),
            *(
                asyncio.to_thread(audit_log.record_blocking, "backup.start", subject=str(number))
                for number in range(100, 200)
            ),
        )
        seen = [entry for entry in log.entries() if isinstance(entry, Record)]
    assert {record.subject for record in seen if record.act == "backup.start"} == {*map(str, range(200))}
    assert check(tmp_path)[0] == []


async def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    async with audit_log.opened(tmp_path, "hub"):
        with pytest.raises(SendenseError) as refused:
            async with audit_log.opened(tmp_path, "hub"):
                pytest.fail("two wrote one log")
    assert refused.value.reason_name == "SERVICE_UNAVAILABLE"


async def test_an_act_that_takes_long_has_its_end_recorded_also_when_it_is_cancelled(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def exporting() -> None:
        async with audit_log.recorded("point.export", subject="p"):
            begun.set()
            await asyncio.Event().wait()

    async with audit_log.opened(tmp_path, "hub"):
        task = asyncio.create_task(exporting())
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with audit_log.recorded("point.verify", subject="p") as more:
            more["read"] = 5
    records = [entry for entry in audit_log.read(tmp_path) if isinstance(entry, Record)]
    assert [(each.act, each.outcome, dict(each.facts)) for each in records[1:-1]] == [
        ("point.export", "begun", {}),
        ("point.export", "failed", {"reason": "CANCELLED"}),
        ("point.verify", "begun", {}),
        ("point.verify", "done", {"read": "5"}),
    ]


async def test_an_end_that_cannot_be_recorded_is_missing_and_an_act_that_was_not_done_is_not(
    tmp_path: Path,
) -> None:
    async with audit_log.opened(tmp_path, "credentials") as log:
        full = contextlib.ExitStack()

        async def rotate() -> None:
            async with audit_log.recorded("key.rotate", subject="k"):
                full.enter_context(no_room())

        with pytest.raises(SendenseError) as told:
            await rotate()
        assert told.value.reason_name == "AUDIT_LOG_UNAVAILABLE"
        with pytest.raises(SendenseError):
            async with audit_log.recorded("key.drop", subject="k"):
                pytest.fail("it was done and not recorded")
        full.close()
        await audit_log.record("job.cancel")
        assert [each.outcome for each in records(log, "key.rotate")] == ["begun"]
        assert [dict(each.facts) for each in records(log, "log.lost")] == [{"count": "1"}]


async def test_a_flood_of_refusals_is_counted_and_does_not_fill_the_log(tmp_path: Path) -> None:
    now_us = 0
    async with audit_log.opened(tmp_path, "hub", clock=lambda: now_us):
        for _ in range(1500):
            if audit_log._current._submit("call.refuse", "x", "refused", "token:x", {}) is None:
                break
        for _ in range(99):
            await audit_log.record("call.refuse", outcome="refused", actor="token:x")
        now_us += 60_000_000
        await audit_log.record("call.refuse", outcome="refused")
    records = [entry for entry in audit_log.read(tmp_path) if isinstance(entry, Record)]
    assert sum(each.act == "call.refuse" for each in records) == 1001
    assert [dict(each.facts) for each in records if each.act == "log.limited"] == [
        {"count": "100", "most": "token:x", "most_count": "100"}
    ]
    assert check(tmp_path)[0] == []
