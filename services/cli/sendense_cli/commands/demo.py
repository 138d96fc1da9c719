# SPDX-License-Identifier: Apache-2.0
"""`sendense demo`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sendense_cli.exits import Exit
from sendense_cli.session import Json, console


def demo(
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the facts are written, as JSON.")
    ] = Path("build/demo.json"),
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="For what it makes: up to 6 GiB; removed at the end.")
    ] = Path("build/demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep DIR, to look around in it.")] = False,
    as_json: Json = False,
) -> None:
    """Show a full and an incremental backup of a simulated VM, with proof, and leave nothing behind.

    Starts a simulated vCenter and everything else as separate processes on this machine. Exit code 0 only if
    every restored byte is identical and nothing is left over.

    Example: sendense demo
    """
    # The lab brings a vCenter along; nothing else that the command does needs it.
    from sendense_lab.client import LabError  # noqa: PLC0415
    from sendense_lab.demo import DemoError, DemoOptions, run_demo  # noqa: PLC0415

    os.environ.pop("SENDENSE_HUB", None)  # the commands that it runs are for its own hub
    shown = Console(stderr=True) if as_json else console
    try:
        ok = asyncio.run(run_demo(DemoOptions(output.absolute(), directory.absolute(), keep), shown))
        if as_json:
            sys.stdout.write(output.read_text())
    except (DemoError, LabError) as error:
        shown.print(f"\n[bold red]The demonstration failed:[/] {error}", highlight=False)
        raise typer.Exit(Exit.FAILED) from error
    except KeyboardInterrupt:
        raise typer.Exit(Exit.INTERRUPTED) from None
    raise typer.Exit(Exit.OK if ok else Exit.FAILED)
