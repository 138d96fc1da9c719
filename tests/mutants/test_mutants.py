# SPDX-License-Identifier: Apache-2.0
"""Each rule has a test and a mutant, each mutant fits the code, a handful is caught; all: `make mutants`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from tests.mutants.mutants import ROOT, RULES, Mutant, Rule, load, problems, table
from tests.mutants.run import run

pytestmark = pytest.mark.integration

_PAGE = ROOT / "docs" / "changed-blocks.md"
_BEGIN, _END = "<!-- `python -m tests.mutants.run --table` -->\n", "<!-- end of the table -->\n"


def test_each_rule_has_tests_and_mutants_that_fit() -> None:
    assert [rule.number for rule in load()] == list(RULES)
    assert problems(load()) == []


def test_what_is_missing_or_does_not_fit_is_found() -> None:
    good = load()[0]
    stale = Mutant(1, "nothing", good.mutants[0].file, "this stands nowhere", "x", good.mutants[0].tests)
    idle = Mutant(1, "nothing", stale.file, good.mutants[0].old, good.mutants[0].old, stale.tests)
    aimless = Mutant(
        1, "nothing", stale.file, good.mutants[0].old, "", ("tests/unit/vsphere/test_faults.py",)
    )
    found = problems([Rule(1, "t", (stale, idle, aimless)), Rule(2, "t"), Rule(3, "t", (), "later")])
    assert [each for each in found if not each.endswith("has no file")] == [
        f"rule 01: nothing: the old text occurs 0 times in {stale.file}",
        "rule 01: nothing: it changes nothing",
        "rule 01: nothing: tests/unit/vsphere/test_faults.py has no test of the rule",
        "rule 02 has no mutant",
    ]
    assert "rule 04 has no file" in found


# Ten runs of pytest, two at a time: seconds, unless a mutant makes its tests hang.
@pytest.mark.timeout(600)
def test_a_handful_of_mutants_is_caught_and_one_that_breaks_nothing_is_not(
    short_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(time.time())
    unit = [each for rule in load() for each in rule.mutants if each.tests[0].startswith("tests/unit/")]
    chosen = random.Random(seed).sample(unit, 5)
    harmless = Mutant(13, "nothing", "services/agent/sendense_agent/datapath/mover/pieces.py",
                      "_ZEROES = bytes(GRAIN_BYTES)\n", "_ZEROES = bytes(64 * 1024)\n",
                      ("tests/unit/datapath/test_pieces.py",))  # fmt: skip
    outcome = run([*chosen, harmless], short_tmp, 2)
    said = capsys.readouterr().out
    assert outcome == (5, 1), f"seed {seed}\n{said}"
    assert "FAILED rule 13: nothing: the rule's tests pass" in said


def test_the_table_in_the_docs_is_that_of_the_mutants() -> None:
    _, _, rest = _PAGE.read_text().partition(_BEGIN)
    assert rest.partition(_END)[0] == table(load()), (
        "put in what `python -m tests.mutants.run --table` prints"
    )
