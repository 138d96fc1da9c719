# SPDX-License-Identifier: Apache-2.0
"""One-line mutations that each break a rule of changed block tracking: kept as data, applied to a copy.

A rule is a file in `rules/`. Each of its mutants names a file of the product, the text that keeps the rule,
what stands there when the rule is broken, and the test modules whose `test_rule_NN_…` must then fail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULES = range(1, 29)
_DIRECTORY = Path(__file__).parent / "rules"
_TEST = re.compile(r"^ *(?:async )?def (test_rule_(\d\d)_\w+)", re.MULTILINE)
_PACKAGES = ("services/*", "protos/gen")
_WITHIN_S = 240
# A test that a mutant makes hang has noticed it; the slowest that rules have take a tenth of this.
_TEST_WITHIN_S = 60
# What pytest's exit codes say.
_PASSED, _FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """One way to break one rule."""

    rule: int
    breaks: str
    """What the product does then, in words."""
    file: str
    """Of the product."""
    old: str
    """Occurs in it once."""
    new: str
    tests: tuple[str, ...]
    """Test modules; those tests in them that are named after the rule must fail."""

    def __str__(self) -> str:
        return f"rule {self.rule:02d}: {self.breaks}"

    def misfit(self, root: Path) -> str:
        """Why it cannot be applied to this tree; empty: it can."""
        path = root / self.file
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count != 1:
            return f"the old text occurs {count} times in {self.file}"
        if self.old == self.new:
            return "it changes nothing"
        for each in self.tests:
            if not (root / each).is_file() or not named_tests(root / each, self.rule):
                return f"{each} has no test of the rule"
        return ""


@dataclass(frozen=True)
class Rule:
    """One rule."""

    number: int
    title: str
    mutants: tuple[Mutant, ...] = ()
    not_built: str = ""
    """Why there is no mutant; empty: there are some."""


def load() -> list[Rule]:
    """All rules, by number."""
    rules = []
    for path in sorted(_DIRECTORY.glob("*.toml")):
        values = tomllib.loads(path.read_text())
        number = values["rule"]
        mutants = tuple(
            Mutant(number, each["breaks"], each["file"], each["old"], each["new"], tuple(each["tests"]))
            for each in values.get("mutant", ())
        )
        rules.append(Rule(number, values["title"], mutants, values.get("not_built", "")))
    return rules


def named_tests(path: Path, rule: int) -> list[str]:
    """Names of the tests of a rule in a test module."""
    return [name for name, number in _TEST.findall(path.read_text()) if int(number) == rule]


def problems(rules: Iterable[Rule], root: Path = ROOT) -> list[str]:
    """What is missing or does not fit: rules without tests, without mutants; mutants that do not apply."""
    rules = list(rules)
    modules = sorted((root / "tests").rglob("test_*.py"))
    found = [f"rule {number:02d} has no file" for number in RULES if number not in {r.number for r in rules}]
    for rule in rules:
        tested = any(named_tests(module, rule.number) for module in modules)
        if rule.not_built and rule.mutants:
            found.append(f"rule {rule.number:02d} has mutants and is said not to be built")
        elif not rule.not_built and not tested:
            found.append(f"rule {rule.number:02d} has no test that is named after it")
        elif not rule.not_built and not rule.mutants:
            found.append(f"rule {rule.number:02d} has no mutant")
        found += [f"{mutant}: {why}" for mutant in rule.mutants if (why := mutant.misfit(root))]
    return found


@dataclass
class Tree:
    """A copy of the working tree in which code is broken and tests run; the checkout is never touched."""

    root: Path
    _changes: int = field(default=0)

    @classmethod
    def copy(cls, root: Path) -> Tree:
        """Copies what git knows or would take."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (source := ROOT / name).is_file():
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        return cls(root)

    def survives(self, mutant: Mutant) -> str:
        """Why the mutant is not caught; empty: the rule's tests fail, as they should."""
        if why := mutant.misfit(self.root):
            return why
        path = self.root / mutant.file
        text, times = path.read_text(), path.stat()
        path.write_text(text.replace(mutant.old, mutant.new))
        # Python tells stale bytecode by size and second; these seconds are nobody else's.
        self._changes += 1
        os.utime(path, (times.st_atime, times.st_mtime + 1000 + self._changes))
        try:
            code, output = self.test(mutant.tests, f"test_rule_{mutant.rule:02d}_")
        finally:
            path.write_text(text)
            os.utime(path, (times.st_atime, times.st_mtime))
        if code == _FAILED:
            return ""
        words = "the rule's tests pass" if code == _PASSED else f"pytest ends with code {code}"
        return f"{words}\n{output}"

    def test(self, modules: Iterable[str], named: str) -> tuple[int, str]:
        """pytest's exit code and last words."""
        child = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", named,
             f"--timeout={_TEST_WITHIN_S}", *modules],
            cwd=self.root, env=self._environment(), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output, _ = child.communicate(timeout=_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            return _FAILED, f"no end within {_WITHIN_S} s"
        return child.returncode, output[-1500:]

    def _environment(self) -> dict[str, str]:
        """The copy's packages come before those that are installed."""
        packages = [str(path) for pattern in _PACKAGES for path in sorted(self.root.glob(pattern))]
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.root), *packages])}


def table(rules: Iterable[Rule]) -> str:
    """For docs/changed-blocks.md."""
    lines = ["| # | Rule | Kept by | Broken for a try: | Noticed by |", "|---|---|---|---|---|"]
    for rule in rules:
        if rule.not_built:
            lines.append(f"| {rule.number} | {rule.title} | | not built: {rule.not_built} | |")
        for mutant in rule.mutants:
            first = mutant is rule.mutants[0]
            tests = " ".join(f"`{each.removeprefix('tests/')}`" for each in mutant.tests)
            kept = f"`{mutant.file.removeprefix('services/').partition('/')[2]}`"
            number, title = (str(rule.number), rule.title) if first else ("", "")
            lines.append(f"| {number} | {title} | {kept} | {mutant.breaks} | {tests} |")
    return "\n".join(lines) + "\n"
