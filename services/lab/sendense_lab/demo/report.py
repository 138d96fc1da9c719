# SPDX-License-Identifier: Apache-2.0
"""How the results of the demonstration look on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_MIB = 1024 * 1024
_DIGEST_SHOWN = 12
_COLUMNS = ("DISK", "CAPACITY", "READ", "CHANGED", "ON WIRE", "SECONDS", "MiB/s", "SHA-256", "SAME")
_LEFT = {"DISK", "SHA-256", "SAME"}


def proofs(console: Console, mode: str, disks: Sequence[Mapping[str, Any]]) -> None:
    """One backup's disks, a line each; sizes in MiB."""
    console.print(f"\n{mode} backup, sizes in MiB; SAME: every restored byte is what the disk held")
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        made.add_column(column, justify="left" if column in _LEFT else "right", no_wrap=True)
    for disk in disks:
        made.add_row(
            str(disk["key"]),
            _mib(disk["capacity_bytes"]),
            _mib(disk["read_bytes"]),
            _mib(disk["changed_bytes"]),
            _mib(disk["wire_bytes"]),
            f"{disk['seconds']:.1f}",
            f"{disk['read_bytes'] / max(disk['seconds'], 1e-3) / _MIB:.0f}",
            f"{disk['sha256'][:_DIGEST_SHOWN]}…",
            "[green]yes[/]" if disk["identical"] else "[bold red]NO[/]",
        )
    console.print(made)


def verdict(console: Console, facts: Mapping[str, Any], output: Path) -> None:
    """The last words."""
    for each in facts["leftovers"]:
        console.print(f"[red]left over:[/] {each}", highlight=False)
    if facts["ok"]:
        text = "[bold green]All identical, nothing left over.[/]"
    else:
        text = "[bold red]Not all is as it should be.[/]"
    where = f"{facts['seconds']:.0f} s; the facts are in {_near(output)}"
    console.print(f"\n{text} {where}", soft_wrap=True, highlight=False)


def _near(path: Path) -> Path:
    """As a person names it: from where they are, if it lies below."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _mib(count_bytes: int) -> str:
    return f"{count_bytes / _MIB:,.1f}"
