# SPDX-License-Identifier: Apache-2.0
"""The log's chain: what is written is right, and every kind of tampering is found and named."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sendense_common import audit_log
from sendense_common.audit_log import (
    GENESIS,
    Anchor,
    AuditLog,
    Checker,
    Finding,
    Problem,
    Record,
    Sizes,
    segments,
)
from sendense_common.audit_log.segments import parsed
from sendense_common.audit_log.wire import from_entry, to_entry
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

_COUNT = 12


def _chain(count: int) -> list[Record]:
    made: list[Record] = []
    for sequence in range(1, count + 1):
        bare = Record(
            sequence=sequence,
            previous=made[-1].hash if made else GENESIS,
            time_us=1_000_000 * sequence,
            service="hub",
            actor="local:0",
            act="backup.start",
            subject=f"job-{sequence}",
            outcome="done",
            facts={"vm": f"vm-{sequence}"},
        )
        made.append(replace(bare, hash=bare.digest()))
    return made


def _anchor(records: list[Record]) -> Anchor:
    return Anchor("the catalog", records[-1].sequence, records[-1].hash)


def _found(entries: Iterable[Record | audit_log.Unreadable], *anchors: Anchor) -> list[Finding]:
    checker = Checker(anchors)
    for entry in entries:
        checker.take(entry)
    return checker.findings()


def _problems(findings: list[Finding]) -> list[tuple[int, Problem]]:
    return [(finding.sequence, finding.problem) for finding in findings]


def test_a_chain_that_nobody_touched_has_no_findings() -> None:
    records = _chain(_COUNT)
    assert _found(records, _anchor(records), _anchor(records[:5])) == []


def test_a_line_is_read_as_the_record_it_was_written_from() -> None:
    record = replace(_chain(1)[0], facts={"vm": "zwölf\u2028", "count": "12"}, time_us=1_764_000_000_000_001)
    assert Record.from_line(record.to_line()) == record
    assert record.to_line().count(b"\n") == 1


@pytest.mark.parametrize("sequence", [1, 2, 7, _COUNT])
@pytest.mark.parametrize(
    "change",
    [
        {"time_us": 5},
        {"service": "agent:paris"},
        {"actor": "token:eve"},
        {"act": "job.cancel"},
        {"subject": "another"},
        {"outcome": "refused"},
        {"facts": {"vm": "another"}},
        {"facts": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_field_is_found_and_named(sequence: int, change: dict[str, object]) -> None:
    records = _chain(_COUNT)
    head = _anchor(records)
    kept = replace(records[sequence - 1], **change)  # type: ignore[arg-type]
    for forged in (kept, replace(kept, hash=kept.digest())):
        records[sequence - 1] = forged
        assert _problems(_found(records, head)) == [(sequence, Problem.CHANGED)]


@pytest.mark.parametrize("sequence", [1, 2, 7])
def test_a_record_that_was_taken_out_is_missing(sequence: int) -> None:
    records = _chain(_COUNT)
    head = _anchor(records)
    del records[sequence - 1]
    assert _problems(_found(records, head)) == [(sequence, Problem.MISSING)]


def test_records_that_were_swapped_are_out_of_order() -> None:
    records = _chain(_COUNT)
    records[4], records[5] = records[5], records[4]
    assert _problems(_found(records)) == [(5, Problem.OUT_OF_ORDER)]


@pytest.mark.parametrize("place", [0, 5, _COUNT])
def test_a_record_that_was_added_is_found(place: int) -> None:
    records = _chain(_COUNT)
    copied = replace(records[place - 1 if place else 0], subject="added")
    records.insert(place, replace(copied, hash=copied.digest()))
    assert (copied.sequence, Problem.INSERTED) in _problems(_found(records))


def test_a_cut_end_is_found_by_who_has_seen_it() -> None:
    records = _chain(_COUNT)
    found = _found(records[:8], _anchor(records))
    assert _problems(found) == [(9, Problem.TRUNCATED)]
    assert "records 9 to 12 are gone: the catalog saw 12" in found[0].words
    assert _problems(_found([], _anchor(records))) == [(1, Problem.TRUNCATED)]


def test_a_log_that_was_made_anew_is_not_the_one_that_was_seen() -> None:
    records = _chain(_COUNT)
    forged = [replace(records[0], subject="another")]
    forged[0] = replace(forged[0], hash=forged[0].digest())
    for record in records[1:]:
        bare = replace(record, previous=forged[-1].hash)
        forged.append(replace(bare, hash=bare.digest()))
    assert _found(forged) == []
    assert _problems(_found(forged, _anchor(records))) == [(_COUNT, Problem.CHANGED)]


def test_a_line_that_cannot_be_read_any_more_is_a_changed_record() -> None:
    for sequence in (1, 6):
        entries: list[Record | audit_log.Unreadable] = [*_chain(_COUNT)]
        entries[sequence - 1] = audit_log.Unreadable(b"{half\n")
        assert _problems(_found(entries)) == [(sequence, Problem.CHANGED)]


@settings(max_examples=60)
@given(data=st.data())
def test_no_edit_of_the_lines_goes_unseen(data: st.DataObject) -> None:
    records = _chain(data.draw(st.integers(1, 8), label="count"))
    head = _anchor(records)
    before = [record.to_line() for record in records]
    lines = list(before)
    for _ in range(data.draw(st.integers(1, 3), label="edits")):
        edit = data.draw(st.sampled_from(["cut", "copy", "move", "byte", "rehash"]))
        if not lines:
            break
        place = data.draw(st.integers(0, len(lines) - 1))
        if edit == "cut":
            del lines[place]
        elif edit == "copy":
            lines.insert(data.draw(st.integers(0, len(lines))), lines[place])
        elif edit == "move":
            lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines.pop(place))
        elif edit == "byte":
            at = data.draw(st.integers(0, len(lines[place]) - 2))
            changed = bytearray(lines[place])
            changed[at] = data.draw(st.integers(32, 126))
            lines[place] = bytes(changed)
        else:
            fields = json.loads(before[0]) | {"subject": data.draw(st.text(max_size=3))}
            forged = Record.from_line(json.dumps(fields).encode())
            lines[place] = replace(forged, hash=forged.digest()).to_line()
    found = _found((parsed(line) for line in lines), head)
    readable = [parsed(line) for line in lines]
    assert (found == []) == (readable == records)


@pytest.mark.parametrize(
    "change", [(b"job-6", b"\\ud800"), (b"1970-01-01T", b"0001-01-01T")], ids=["text", "time"]
)
def test_a_record_that_was_altered_so_that_it_cannot_be_hashed_or_shown_is_named(
    change: tuple[bytes, bytes],
) -> None:
    lines = [record.to_line() for record in _chain(_COUNT)]
    lines[5] = lines[5].replace(*change)
    entries = [parsed(line) for line in lines]
    assert _problems(_found(entries)) == [(6, Problem.CHANGED)]
    assert [from_entry(to_entry(entry)) for entry in entries] == entries


def test_a_record_of_another_service_is_named() -> None:
    records = _chain(_COUNT)
    assert _found(records) == []
    checker = Checker(of_log="agent:paris")
    for record in records[:2]:
        checker.take(record)
    assert _problems(checker.findings()) == [(1, Problem.CHANGED), (2, Problem.CHANGED)]
    assert "of the log of 'hub'" in checker.findings()[0].words


@pytest.mark.parametrize("field", ["time", "hash", "previous"])
def test_a_message_that_no_service_writes_is_unreadable_and_named(field: str) -> None:
    messages = [to_entry(record) for record in _chain(_COUNT)]
    told = messages[5].record
    if field == "time":
        told.time.seconds = 10**13
    elif field == "hash":
        told.record_hash = bytes(1 << 20)
    else:
        told.previous_hash = b""
    assert _problems(_found(map(from_entry, messages))) == [(6, Problem.CHANGED)]


def test_what_is_named_like_a_secret_is_refused(tmp_path: Path) -> None:
    canary = "hunter2-canary"
    log = AuditLog(tmp_path / "log", "hub", clock=itertools.count(1).__next__)
    for name in ("password", "new_password", "secret", "session_cookie", "token", "private_key", "code"):
        with pytest.raises(ValueError, match="may be a secret") as refused:
            _submit(log, **{name: canary})
        assert canary not in str(refused.value)
    with pytest.raises(TypeError):
        _submit(log, login=object())
    with pytest.raises(ValueError, match="not in the catalogue"):
        log.submit("something.else", subject="", outcome="done", actor="local", facts={})
    _submit(log, key_id="k1", token_name="ci").result()
    log.close()
    assert all(canary.encode() not in file.read_bytes() for file in (tmp_path / "log").iterdir())


def _submit(log: AuditLog, act: str = "backup.start", **facts: object) -> Future[Record]:
    written = log.submit(act, subject="a", outcome="done", actor="local", facts=facts)
    assert written is not None
    return written


def _log(directory: Path, **more: object) -> AuditLog:
    return AuditLog(directory, "hub", clock=itertools.count(1_000_000).__next__, **more)  # type: ignore[arg-type]


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for _ in range(3):
        log = _log(tmp_path)
        assert [_submit(log).result().sequence for _ in range(2)] == [
            log.head.sequence - 1,
            log.head.sequence,
        ]
        log.close()
    assert [entry.sequence for entry in audit_log.read(tmp_path) if isinstance(entry, Record)] == [
        *range(1, 7)
    ]
    assert _found(audit_log.read(tmp_path)) == []


@pytest.mark.parametrize("torn", ["half of a record", "no line end", "zeros", "zeros and a line end"])
def test_a_torn_end_stays_and_is_accounted_for(tmp_path: Path, torn: str) -> None:
    log = _log(tmp_path)
    for _ in range(3):
        _submit(log).result()
    log.close()
    (segment,) = tmp_path.glob("*.jsonl")
    whole = segment.read_bytes()
    left = {
        "half of a record": whole[:-40],
        "no line end": whole[:-1],
        "zeros": whole + bytes(100),
        "zeros and a line end": whole + bytes(100) + b"\n" + b'{"sequence',
    }[torn]
    segment.write_bytes(left)
    if torn != "no line end":
        assert [finding.problem for finding in _found(audit_log.read(tmp_path))] == [Problem.TORN]
    log = _log(tmp_path)
    _submit(log).result()
    log.close()
    assert segment.read_bytes().startswith(left), "what was there must stay as it was"
    checker = Checker()
    for entry in audit_log.read(tmp_path):
        checker.take(entry)
    assert checker.findings() == []
    assert checker.mended == (torn != "no line end")


def test_a_torn_end_that_was_seen_whole_is_still_found(tmp_path: Path) -> None:
    log = _log(tmp_path)
    for _ in range(3):
        _submit(log).result()
    head = log.head
    log.close()
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(segment.read_bytes()[:-40])
    log = _log(tmp_path)
    _submit(log).result()
    log.close()
    anchor = Anchor("the catalog", head.sequence, head.hash)
    assert _problems(_found(audit_log.read(tmp_path), anchor)) == [(3, Problem.CHANGED)]


def test_segments_chain_and_the_oldest_go_with_a_record(tmp_path: Path) -> None:
    log = _log(tmp_path, sizes=Sizes(segment_bytes=2000, segments=3))
    for _ in range(60):
        _submit(log).result()
    log.close()
    segments = sorted(tmp_path.glob("*.jsonl"))
    assert len(segments) == 3
    entries = list(audit_log.read(tmp_path))
    assert isinstance(entries[0], Record)
    assert entries[0].sequence > 1
    assert int(segments[0].stem) == entries[0].sequence
    assert _found(entries) == []
    without = [entry for entry in entries if not isinstance(entry, Record) or entry.act != "log.discarded"]
    assert (1, Problem.MISSING) in _problems(_found(without))
    segments[0].unlink()
    assert (1, Problem.MISSING) in _problems(_found(audit_log.read(tmp_path)))


def test_what_cannot_be_written_is_told_and_rights_are_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False
    write: Callable[[int, bytes], int] = os.write

    def limited(file: int, data: bytes) -> int:
        if full:
            write(file, data[:10])
            raise OSError(28, "No space left on device")
        return write(file, data)

    async def scenario() -> None:
        nonlocal full
        async with audit_log.opened(tmp_path, "hub") as log:
            monkeypatch.setattr("os.write", limited)
            full = True
            await audit_log.record("job.cancel", subject="lost")
            assert "No space left" in log.failure
            with pytest.raises(SendenseError) as refused:
                await audit_log.record("credential.grant", subject="never")
            assert refused.value.reason_name == "AUDIT_LOG_UNAVAILABLE"
            with pytest.raises(SendenseError):
                await asyncio.to_thread(audit_log.record_blocking, "credential.grant", subject="never")
            await audit_log.record("lease.redeem", outcome="refused", subject="lost too")
            full = False
            await audit_log.record("job.cancel", subject="kept")
            assert log.failure == ""

    asyncio.run(scenario())
    monkeypatch.undo()
    records = [entry for entry in audit_log.read(tmp_path) if isinstance(entry, Record)]
    assert [record.act for record in records] == [
        "service.start",
        "log.mended",
        "log.lost",
        "job.cancel",
        "service.stop",
    ]
    assert records[2].facts == {"count": "2"}
    assert _found(audit_log.read(tmp_path)) == []


def test_whatever_goes_wrong_in_the_writer_it_goes_on_and_rights_are_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_us = 1_000_000
    log = AuditLog(tmp_path, "hub", clock=lambda: now_us)
    _submit(log).result(timeout=20)
    (segment,) = tmp_path.glob("*.jsonl")
    (tmp_path / f"{segment.stem}-copy.jsonl").write_bytes(segment.read_bytes())

    def no_room(file: int) -> None:
        raise OSError(28, "No space left on device")

    def fail(head: audit_log.Head) -> None:
        raise RuntimeError("the loop is closed")

    monkeypatch.setattr("os.fsync", no_room)
    for broken in ("disk", "clock", "listener"):
        if broken == "listener":
            log.listener = fail
        else:
            with pytest.raises(SendenseError) as refused:
                _submit(log, "credential.grant").result(timeout=20)
            assert refused.value.reason_name == "AUDIT_LOG_UNAVAILABLE"
        monkeypatch.undo()
        now_us = 10**18 if broken == "disk" else 2_000_000
    for _ in range(2):
        _submit(log).result(timeout=20)
    log.close()
    log = _log(tmp_path)
    _submit(log).result(timeout=20)
    log.close()
    assert _found(audit_log.read(tmp_path)) == []


def test_after_a_start_only_the_file_is_read_that_can_have_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _log(tmp_path, sizes=Sizes(segment_bytes=2000, segments=100))
    hashes = {record.sequence: record.hash for record in (_submit(log).result() for _ in range(60))}
    log.close()
    log = _log(tmp_path)
    opened: list[Path] = []
    read_file = segments.read_file

    def noting(segment: Path, **more: int | None) -> Iterable[Record | audit_log.Unreadable]:
        opened.append(segment)
        return read_file(segment, **more)

    monkeypatch.setattr(segments, "read_file", noting)
    assert {sequence: log.hash_of(sequence) for sequence in hashes} == hashes
    assert len(opened) == len(hashes)
    assert len({*opened}) == len([*tmp_path.glob("*.jsonl")]) > 5
    assert (log.hash_of(0), log.hash_of(61)) == (b"", b"")
    log.close()
