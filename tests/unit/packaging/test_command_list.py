# SPDX-License-Identifier: Apache-2.0
"""services/cli/README.md lists the commands that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from tests.unit.packaging.containers import ROOT

from sendense_cli.main import app

pytestmark = pytest.mark.unit


def commands(group: Any, name: str) -> Iterator[str]:
    """Rows of a table: each command with the first sentence of its help."""
    for part, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {part}")
        else:
            sentence = re.split(r"[.;:](?:\s|$)", " ".join(command.help.split()))[0]
            yield f"| `{name} {part}` | {sentence} |"


def test_the_readme_lists_the_commands():
    rows = list(commands(typer.main.get_command(app), "sendense"))
    assert len(rows) > 15
    readme = (ROOT / "services" / "cli" / "README.md").read_text()
    listed = [line for line in readme.splitlines() if line.startswith("| `sendense ")]
    assert listed == rows, "the table should be:\n" + "\n".join(rows)
