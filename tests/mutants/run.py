# SPDX-License-Identifier: Apache-2.0
"""`make mutants`: breaks each rule once and expects that rule's tests to notice. The last line counts.

First the rules' tests must pass as the code is; then each mutant is applied to a copy of the tree, several
copies at a time, and must make them fail.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.mutants import Mutant, Tree, load, problems, table


def main() -> int:
    """The exit code is 1 when anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument(
        "--table", action="store_true", help="print the table of docs/changed-blocks.md, and end"
    )
    parser.add_argument("--rule", type=int, action="append", help="only this rule; may be repeated")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="copies of the tree")
    wanted = parser.parse_args()
    rules = load()
    if wanted.table:
        say(table(rules).rstrip("\n"))
        return 0
    failures = problems(rules)
    for each in failures:
        say(f"FAILED {each}")
    mutants = [
        each for rule in rules for each in rule.mutants if not wanted.rule or rule.number in wanted.rule
    ]
    with tempfile.TemporaryDirectory(prefix="sd-mutants-", dir="/tmp") as directory:
        passed, failed = run(mutants, Path(directory), wanted.at_once)
    say(f"{passed} passed, {failed + len(failures)} failed")
    return int(bool(failed or failures))


def run(mutants: list[Mutant], directory: Path, at_once: int) -> tuple[int, int]:
    """(caught, survived), told one by one. A module that fails by itself counts as one that survived."""
    trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
    for number in range(at_once):
        trees.put(Tree.copy(directory / str(number)))

    def healthy(module: str) -> str:
        tree = trees.get()
        try:
            code, output = tree.test([module], "test_rule_")
        finally:
            trees.put(tree)
        return f"{module} fails without a mutant\n{output}" if code else ""

    def survives(mutant: Mutant) -> str:
        tree, began = trees.get(), time.monotonic()
        try:
            why = tree.survives(mutant)
        finally:
            trees.put(tree)
        spent_s = time.monotonic() - began
        say(f"FAILED {mutant}: {why}" if why else f"caught {mutant} ({spent_s:.1f} s)")
        return why

    with ThreadPoolExecutor(at_once) as pool:
        modules = sorted({module for mutant in mutants for module in mutant.tests})
        unhealthy = [why for why in pool.map(healthy, modules) if why]
        for why in unhealthy:
            say(f"FAILED {why}")
        outcomes = list(pool.map(survives, mutants))
    survivors = sum(bool(why) for why in outcomes)
    return len(outcomes) - survivors, survivors + len(unhealthy)


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
