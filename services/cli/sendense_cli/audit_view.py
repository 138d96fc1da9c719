# SPDX-License-Identifier: Apache-2.0
"""Audit logs as people see them. What stands in a record is shown as it is, never as markup."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sendense_cli.session import table
from sendense_common.audit_log import Record

_COLUMNS = ["TIME", "LOG", "WHO", "ACT", "SUBJECT", "OUTCOME", "MORE"]
_STYLES = {"refused": "yellow", "failed": "red"}


def records_table(records: Iterable[Record]) -> Table:
    """One row for each."""
    return table(_COLUMNS, map(_row, records))


def not_read(words: str, *, revoked: bool = False, verb: str = "read") -> Text:
    """A log that is missing; of a revoked agent, whose is not asked for any more, that is no trouble."""
    said = f"{'revoked, ' if revoked else ''}not {verb} "
    return Text.assemble((said, "dim" if revoked else "yellow"), words)


def result_lines(result: Mapping[str, Any]) -> Text:
    """What a verification has found in one log."""
    log, findings = result["log"], result["findings"]
    told = []
    if findings:
        count = "1 place is" if len(findings) == 1 else f"{len(findings)} places are"
        lines = [f" {log}: {count} wrong; records read: {result['records']}"]
        lines += [f"  record {each['sequence']}: {each['problem']}: {each['words']}" for each in findings]
        told.append(Text.assemble(("WRONG", "bold red"), "\n".join(lines)))
    if result["not_read"]:
        words, revoked = f"{log}: {result['not_read']}", result["revoked"]
        told.append(not_read(words, revoked=revoked, verb="verified" if revoked else "read"))
    if told:
        return Text("\n").join(told)
    seen = " and ".join(result["witnesses"]) or "nobody yet"
    lines = [f" {log}: records {result['first_sequence']} to {result['head_sequence']}; seen by {seen}"]
    if result["mended"]:
        lines.append(f"  torn by a crash, as the record after it tells: {result['mended']}")
    lines.append(f"  head {log}:{result['head_sequence']}:{result['head_hash']}")
    return Text.assemble(("ok", "green"), "\n".join(lines))


def _row(record: Record) -> list[str]:
    moment = datetime.datetime.fromtimestamp(record.time_us / 1e6, datetime.UTC).astimezone()
    more = " ".join(f"{name}={value}" for name, value in sorted(record.facts.items()))
    style = _STYLES.get(record.outcome)
    return [
        moment.strftime("%Y-%m-%d %H:%M:%S"),
        escape(record.service),
        escape(record.actor),
        escape(record.act),
        escape(record.subject),
        f"[{style}]{record.outcome}[/]" if style else record.outcome,
        escape(more),
    ]
