# SPDX-License-Identifier: Apache-2.0
"""A report for people."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WORDS = {"passed": "passed", "failed": "FAILED", "cannot": "cannot be provoked"}
_WIDTH = 140


def as_table(report: dict[str, Any]) -> str:
    """What `run_accept` gave, as text."""
    written = io.StringIO()
    console = Console(file=written, width=_WIDTH)
    for vm, rows in report["vms"].items():
        table = Table(box=None, pad_edge=False, title=f"{vm} at {report['vcenter']}", title_justify="left")
        for column in ("SCENARIO", "CHECK", "OUTCOME", "WHY / WHAT WAS SEEN"):
            table.add_column(column, overflow="fold", no_wrap=column != "WHY / WHAT WAS SEEN")
        for row in rows:
            why = row["why"] or "; ".join(row["seen"])
            table.add_row(row["scenario"], row["check"] or "-", _WORDS[row["outcome"]], Text(why))
        console.print(table)
    return written.getvalue()
