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


@pytest.mark.parametrize(
    ("service", "program"),
    [(sendense_agent, "sendense-agent"), (sendense_credentials, "sendense-credentials"),
     (sendense_hub, "sendense-hub")],
)  # fmt: skip
def test_the_examples_of_a_services_help_are_understood_and_agree_on_its_directories(
    service: Any, program: str
):
    epilog = service.main._EPILOG.replace("\\\n", " ")
    examples = re.findall(rf"^  {program} (.*)", epilog, re.MULTILINE)
    assert examples
    for words in map(shlex.split, examples):
        PARSERS[program](words)
    for option in ("--state", "--run"):
        given = {words[words.index(option) + 1] for words in map(shlex.split, examples) if option in words}
        assert len(given) <= 1, (option, given)
        # As the page has it, whose directories the `sendense` command looks into.
        page = (ROOT / "docs" / "operations.md").read_text()
        assert all(f"| `{directory}`" in page for directory in given), given


def test_contributing_lists_the_targets_of_make():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) > 5
    listed = re.findall(r"^\| `make ([a-z-]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(targets)
