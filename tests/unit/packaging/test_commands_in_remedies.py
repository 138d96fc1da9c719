# SPDX-License-Identifier: Apache-2.0
"""Every command that a message tells somebody to run is one that can be run as it is told.

What the person has to put in is in CAPITALS; what the code puts in stands for itself.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.unit.packaging.containers import ROOT
from tests.unit.packaging.test_commands_in_pages import PARSERS

pytestmark = pytest.mark.unit

SOURCES = sorted(path for path in (ROOT / "services").rglob("*.py") if "sendense_lab" not in path.parts)
COMMAND = re.compile(r"`(sendense(?:-[a-z]+)?)(?: ([^`]*))?`")
BARE = re.compile(r"sendense(?:-[a-z]+)? (?:--|[a-z]+(?: |\.|$|`))")
PUT_IN = "put-in-by-the-code"
# Placeholders of which not every word will do.
EXAMPLES = {"HOST:PORT": "backup.example.net:8022", "GIB": "10", "HOURS": "24"}

# What only the command itself asks for, when it runs: by command.
NEEDED = {
    "vcenter password": ["--password-file|--password-stdin"],
    "vcenter add": ["--password-file|--password-stdin", "--ca-file|--thumbprint"],
    "vcenter change": ["--address|--ca-file|--thumbprint"],
}


@dataclass(frozen=True)
class Text:
    """One that the product can say."""

    where: str
    text: str


def texts(path: Path) -> Iterator[tuple[Text, bool]]:
    """All strings of a module but docstrings, whole; and whether each is given as a `remedy`."""
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    remedies = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "remedy"
    }

    def whole(node: ast.expr) -> str | None:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.JoinedStr(values=values):
                return "".join(whole(value) or PUT_IN for value in values)
            case ast.FormattedValue(value=ast.Name(id=name)) if name in constants:
                return whole(constants[name])
            case ast.FormattedValue(value=ast.IfExp(body=one)):
                return whole(one)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                both = whole(left), whole(right)
                return None if both == (None, None) else "".join(each or PUT_IN for each in both)
        return None

    def visit(node: ast.AST) -> Iterator[tuple[Text, bool]]:
        if isinstance(node, ast.expr) and (text := whole(node)) is not None:
            yield Text(f"{path.relative_to(ROOT)}:{node.lineno}", text), id(node) in remedies
            return
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                yield from visit(child)

    yield from visit(tree)


def words_of(rest: str) -> list[str]:
    return [EXAMPLES.get(word, word) for word in shlex.split(rest)]


@pytest.fixture(scope="module")
def said() -> list[tuple[Text, bool]]:
    return [each for path in SOURCES for each in texts(path)]


def test_each_command_is_understood_with_what_it_is_given(
    said: list[tuple[Text, bool]], monkeypatch: pytest.MonkeyPatch
):
    for name in ("STATE", "HUB", "RUN", "CREDENTIALS_RUN"):
        monkeypatch.delenv(f"SENDENSE_{name}", raising=False)
    wrong, count = [], 0
    for each, _ in said:
        for program, rest in COMMAND.findall(each.text):
            if "--help" in rest or not rest:
                continue
            count += 1
            if missing := [
                each for each in NEEDED.get(" ".join(rest.split()[:2]), ()) if not re.search(each, rest)
            ]:
                wrong.append(f"{each.where}: {program} {rest}: without {missing}")
            try:
                PARSERS[program](words_of(rest))
            except (SystemExit, Exception) as error:  # noqa: BLE001 - each parser has errors of its own
                wrong.append(f"{each.where}: {program} {rest}: {error!r}")
    assert not wrong, "\n".join(wrong)
    assert count > 50


def test_each_command_of_a_remedy_stands_in_backquotes(said: list[tuple[Text, bool]]):
    remedies = [each for each, is_remedy in said if is_remedy]
    assert len(remedies) > 150
    wrong = [each for each in remedies if BARE.search(COMMAND.sub("", each.text))]
    assert not wrong
