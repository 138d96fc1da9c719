# SPDX-License-Identifier: Apache-2.0
"""What a repair did and found, on the screen."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table
from rich.text import Text

from sendense.common.v1 import act_pb2 as pb
from sendense_cli.exits import Exit
from sendense_cli.session import table

_STYLES = {
    pb.ACT_OUTCOME_DONE: ("done", "green"),
    pb.ACT_OUTCOME_REPORTED: ("left", "yellow"),
    pb.ACT_OUTCOME_FAILED: ("failed", "red"),
}


def lines(acts: Collection[pb.Act]) -> Table | str:
    """All of them, in their order."""
    if not acts:
        return "Nothing was left behind by anything.\n"
    made = table(["LEFT", "WHERE", "", "WHY", "WHAT TO DO"], [])
    for act in acts:
        word, style = _STYLES[act.outcome]
        made.add_row(act.what, Text(act.where), Text(word, style=style), Text(act.why), Text(act.remedy))
    return made


def exit_for(acts: Collection[pb.Act]) -> Exit:
    """FAILED when one of them could not be put right."""
    return Exit.FAILED if any(act.outcome == pb.ACT_OUTCOME_FAILED for act in acts) else Exit.OK
