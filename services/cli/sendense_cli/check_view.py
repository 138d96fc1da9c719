# SPDX-License-Identifier: Apache-2.0
"""Checks on the screen: a line each, what was found and what to do."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table
from rich.text import Text

from sendense.hub.v1 import system_service_pb2 as pb
from sendense_cli.exits import Exit
from sendense_cli.session import table

_STYLES = {
    pb.CHECK_STATUS_OK: ("ok", "green"),
    pb.CHECK_STATUS_WARNING: ("warning", "yellow"),
    pb.CHECK_STATUS_ERROR: ("error", "red"),
}


def lines(checks: Collection[pb.Check]) -> Table:
    """All of them, in their order."""
    made = table(["CHECK", "", "FINDING", "WHAT TO DO"], [])
    for check in checks:
        word, style = _STYLES[check.status]
        made.add_row(check.name, Text(word, style=style), Text(check.finding), Text(check.remedy))
    return made


def exit_for(checks: Collection[pb.Check]) -> Exit:
    """FAILED when one of them is an error."""
    return Exit.FAILED if any(each.status == pb.CHECK_STATUS_ERROR for each in checks) else Exit.OK
