# SPDX-License-Identifier: Apache-2.0
"""Every command that a page shows is one that is there and is understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest
import typer.main
from tests.unit.packaging.containers import ROOT

import sendense_agent.main
import sendense_credentials.main
import sendense_hub.main
from sendense_cli.main import app

pytestmark = pytest.mark.unit


def parse_sendense(words: list[str]) -> None:
    """Has the command line of `sendense` parse words, and runs nothing."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context("sendense", words)


PARSERS: dict[str, Callable[[list[str]], object]] = {
    "sendense": parse_sendense,
    "sendense-agent": lambda words: sendense_agent.main.parser().parse_args(words),
    "sendense-credentials": lambda words: sendense_credentials.main.parser().parse_args(words),
    "sendense-hub": lambda words: sendense_hub.main.parser().parse_args(words),
}
PROGRAM = re.compile(r"(?:^|[ =/])(sendense(?:-[a-z]+)?) +(?=[a-z-])")


def shown() -> list[tuple[str, list[str]]]:
    """Program and arguments of every command in a block."""
    text = (ROOT / "docs" / "operations.md").read_text()
    blocks = re.findall(r"^```(?:text|ini)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [
        (match[1], shlex.split(line[match.end() :]))
        for line in lines
        if (match := PROGRAM.search(line)) and not line.startswith("#")
    ]


def test_the_commands_of_the_page_are_understood():
    commands = shown()
    assert {program for program, _ in commands} == set(PARSERS)
    assert len(commands) >= 9
    for program, words in commands:
        try:
            PARSERS[program](words)
        except (SystemExit, Exception) as error:  # noqa: BLE001 - each parser has errors of its own
            pytest.fail(f"{program} {shlex.join(words)}: {error!r}")


def test_contributing_lists_the_targets_of_make():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 5
    listed = re.findall(r"^\| `make ([a-z-]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(targets)
