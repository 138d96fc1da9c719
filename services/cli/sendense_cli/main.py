# SPDX-License-Identifier: Apache-2.0
"""`sendense`: the command line."""

from __future__ import annotations

import typer

from sendense_cli.commands import backup, demo, doctor, job, point, up, vcenter, vm

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sendense backs up VMware virtual machines from remote sites to a central hub.",
    epilog="Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 refused (exists, busy, not allowed); "
    "5 not reachable; 130 interrupted. --json answers are for programs; errors are then JSON on stderr.",
)
app.command("up")(up.up)
app.add_typer(vcenter.app, name="vcenter")
app.add_typer(vm.app, name="vm")
app.add_typer(backup.app, name="backup")
app.add_typer(job.app, name="job")
app.add_typer(point.app, name="point")
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
