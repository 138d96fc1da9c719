# SPDX-License-Identifier: Apache-2.0
"""No command of any program has a switch that lets a certificate or a host key go unverified."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import pytest
import typer.main

import sendense_agent.main
import sendense_cli.main
import sendense_credentials.main
import sendense_hub.main

pytestmark = pytest.mark.unit

_FORBIDDEN = re.compile(
    r"insecure|unverif|no-?(verify|check|tls|ssl)|skip-?(verif|tls|cert|check)|trust-?(all|any)|accept-?(any|all|new)"
    r"|ignore-?(cert|tls|ssl|host)|allow-?(invalid|untrusted|any)",
    re.IGNORECASE,
)

_OF_OTHER_THINGS = {("sendense point export", "--no-verify")}
"""Leaves out the comparison of what was written to a file of the operator's own."""


def of_typer(command: object, path: str) -> Iterator[tuple[str, str]]:
    """(Where, option or its help) of a command and all below it."""
    for parameter in command.params:  # type: ignore[attr-defined]
        for word in (*parameter.opts, *parameter.secondary_opts):
            yield path, word
    for name, below in getattr(command, "commands", {}).items():
        yield from of_typer(below, f"{path} {name}")


def of_argparse(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        for word in action.option_strings:
            yield path, word
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from of_argparse(below, f"{path} {name}")


def every_option() -> list[tuple[str, str]]:
    found = list(of_typer(typer.main.get_command(sendense_cli.main.app), "sendense"))
    for module in (sendense_agent.main, sendense_credentials.main, sendense_hub.main):
        found += of_argparse(module.parser(), module.__name__)
    return found


def test_no_option_of_any_command_turns_verification_off() -> None:
    options = every_option()
    words = {word for _, word in options}
    assert {"--ca-file", "--thumbprint", "--key-file", "--listen", "--hub-key"} <= words, "all were looked at"
    assert {each for each in options if _FORBIDDEN.search(each[1])} == _OF_OTHER_THINGS


@pytest.mark.parametrize(
    "word", ["--insecure", "--no-verify", "--skip-tls-verify", "--ignore-certificate", "--trust-all"]
)
def test_such_a_switch_would_be_found(word: str) -> None:
    assert _FORBIDDEN.search(word)


def test_the_pattern_finds_no_honest_option() -> None:
    assert not _FORBIDDEN.search("--ca-file")
    assert not _FORBIDDEN.search("--hub-key")
