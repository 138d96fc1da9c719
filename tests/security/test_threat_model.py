# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md claims nothing that no test shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

_ROOT = Path(__file__).parents[2]
_LINES = (_ROOT / "SECURITY.md").read_text().splitlines()
_CLAIMS = [line for line in _LINES if line.startswith("| ") and not line.startswith("| Claim ")]
_LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)#([^)]+)\)")


def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, functions) and node.name.startswith("test_")}


@pytest.mark.parametrize("claim", _CLAIMS, ids=lambda claim: claim[2:60])
def test_each_claim_of_the_threat_model_has_tests_that_exist(claim: str) -> None:
    words, shown_by = claim.strip("| ").split(" | ")
    links = _LINK.findall(shown_by)
    assert words
    assert links, "nothing shows it"
    for file, test in links:
        assert test in _tests_of(_ROOT / file), f"{file} has no {test}"


def test_the_threat_model_speaks_of_every_attacker() -> None:
    headings = " ".join(line for line in _LINES if line.startswith("## "))
    for attacker in ("network", "agent", "hub", "credentials database", "repository", "same host"):
        assert attacker in headings
    assert len(_CLAIMS) > 20
