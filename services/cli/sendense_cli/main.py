# SPDX-License-Identifier: Apache-2.0
"""`sendense`: the command line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

# Until all modules are loaded, Ctrl-C ends the process at once, not with a traceback.
_interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _interruptible:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# gRPC's own words about connections go past the ones that are told; it looks at this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import typer  # noqa: E402
from typer.exceptions import TyperException  # noqa: E402

from sendense.common.v1.reason_pb2 import Reason  # noqa: E402
from sendense_cli.commands import (  # noqa: E402
    agent,
    audit,
    backup,
    credentials,
    demo,
    doctor,
    job,
    operator,
    point,
    repository,
    up,
    vcenter,
    vm,
)
from sendense_cli.exits import Exit, show_error  # noqa: E402
from sendense_cli.remote import Hub  # noqa: E402
from sendense_cli.session import ask_hub_elsewhere  # noqa: E402
from sendense_common.errors import SendenseError  # noqa: E402

if _interruptible:
    signal.signal(signal.SIGINT, signal.default_int_handler)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Sendense backs up VMware virtual machines from remote sites to a central hub.",
    epilog="Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 refused (exists, busy, not allowed); "
    "5 not reachable; 130 interrupted. --json answers are for programs; errors are then JSON on stderr.",
)


def _file(name: str, variable: str, text: str) -> Any:
    return typer.Option(name, envvar=variable, metavar="FILE", help=text, show_default=False)


@app.callback()
def _where(
    hub: Annotated[
        str,
        typer.Option(
            envvar="SENDENSE_HUB",
            metavar="HOST:PORT",
            help="Ask the hub there, which was started with --api-listen. Without: the installation here.",
            show_default=False,
        ),
    ] = "",
    token_file: Annotated[
        Path | None, _file("--token-file", "SENDENSE_TOKEN_FILE", "With the token that is shown to it.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        _file(
            "--ca-file", "SENDENSE_CA_FILE", "CA of its certificate, PEM; else those this computer trusts."
        ),
    ] = None,
    certificate_file: Annotated[
        Path | None,
        _file(
            "--certificate-file", "SENDENSE_CLIENT_CERTIFICATE_FILE", "Certificate that is shown to it, PEM."
        ),
    ] = None,
    key_file: Annotated[
        Path | None, _file("--key-file", "SENDENSE_CLIENT_KEY_FILE", "Private key of that certificate, PEM.")
    ] = None,
) -> None:
    if hub:
        ask_hub_elsewhere(Hub(hub, token_file, ca_file, certificate_file, key_file))


app.command("up")(up.up)
app.add_typer(agent.app, name="agent")
app.add_typer(vcenter.app, name="vcenter")
app.add_typer(vm.app, name="vm")
app.add_typer(backup.app, name="backup")
app.add_typer(job.app, name="job")
app.add_typer(point.app, name="point")
app.add_typer(repository.app, name="repository")
app.add_typer(audit.app, name="audit")
app.add_typer(credentials.app, name="credentials")
app.add_typer(operator.app, name="operator")
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if "--json" not in arguments:
        app()
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        remedy = "See `sendense --help` and `sendense COMMAND --help`."
        wrong = SendenseError(Reason.REASON_INVALID_REQUEST, error.format_message(), remedy=remedy)
        show_error(wrong, as_json=True)
        code = Exit.USAGE
    except typer.Abort:
        code = Exit.INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
