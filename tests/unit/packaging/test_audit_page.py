# SPDX-License-Identifier: Apache-2.0
"""docs/audit.md lists the acts and the problems that there are."""

from __future__ import annotations

import ast
import re

import pytest
from tests.unit.packaging.containers import ROOT

from sendense_common.audit_log import Problem
from sendense_common.audit_log.catalogue import ACTS, RIGHTS

pytestmark = pytest.mark.unit

_PAGE = (ROOT / "docs" / "audit.md").read_text()


def test_the_page_lists_the_acts():
    rows = [f"| `{act}` | {words} |" for act, words in ACTS.items()]
    listed = re.findall(r"^\| `[a-z]+\.[a-z_]+` \| .*$", _PAGE, re.MULTILINE)
    assert listed == rows, "the table should be:\n" + "\n".join(rows)
    assert f"to `{list(RIGHTS)[-1]}`)" in _PAGE


def test_the_page_explains_the_problems():
    assert [f"| {problem} |" for problem in Problem if f"\n| {problem} | " not in _PAGE] == []


def test_a_fingerprint_in_a_record_says_of_which_keys_it_is():
    calls = [
        call
        for path in (ROOT / "services").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if call.func.attr in {"record", "record_blocking", "recorded"}
    ]
    named = {each.arg for call in calls for each in call.keywords if "fingerprint" in ast.unparse(each.value)}
    assert named == {"ssh_fingerprint", "lease_keys_fingerprint"}
    assert "replaces" not in {each.arg for call in calls for each in call.keywords}
