# SPDX-License-Identifier: Apache-2.0
"""`sendense-lab`: things to test and demonstrate Sendense with."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense_common.paths import runtime_dir
from sendense_lab.scenarios import Scenario, ScenarioError, find, load, read, shipped
from sendense_lab.vcenter.certificates import make_certificates
from sendense_lab.vcenter.control import ControlServer
from sendense_lab.vcenter.web import WebServer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Things to test and demonstrate Sendense with. Nothing here is for production.",
)


scenarios = typer.Typer(
    no_args_is_help=True, help="What the simulated vCenter can play; see docs/scenarios.md."
)
app.add_typer(scenarios, name="scenarios")


@app.callback()
def lab() -> None:
    """Sendense's lab."""


@app.command()
def vcenter(
    state: Annotated[Path, typer.Option(help="Directory for everything it keeps; emptied of old sockets.")],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT of its HTTPS; port 0 takes a free one.")
    ] = "127.0.0.1:0",
    username: Annotated[str, typer.Option(help="The only user.")] = "administrator@vsphere.local",
    password_file: Annotated[
        Path | None, typer.Option(help="File with the user's password, taken byte for byte.")
    ] = None,
    expired: Annotated[bool, typer.Option(help="Show a certificate that has expired.")] = False,
    certificate_name: Annotated[
        str, typer.Option(metavar="NAME", help="The one host name that its certificate is for.")
    ] = "",
    scenario: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="What it holds and how it behaves; see `scenarios list`.")
    ] = "",
) -> None:
    """Runs a simulated vCenter until it is told to stop.

    It speaks vSphere's SOAP API over TLS (log in with any client, as pyvmomi or govc), keeps disks as sparse
    files, tracks changed blocks, takes snapshots and serves the datastore's files at /folder. In STATE it
    writes `ca.pem` (whom to trust), `endpoint` (HOST:PORT) and `run/control.sock` (lines of JSON: add VMs,
    write as a guest, inject faults; see services/lab/README.md). Prints "ready" when it serves.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s lab %(message)s")
    state.mkdir(parents=True, exist_ok=True)
    host, _, port = listen.rpartition(":")
    password = password_file.read_text(encoding="utf-8") if password_file else "correct horse"
    named: dict[str, Any] = {"names": (certificate_name,), "addresses": ()} if certificate_name else {}
    _, certificate, key = make_certificates(state, valid_days=-1 if expired else 365, **named)
    simulated, commands = load(_read(scenario) if scenario else None, state / "datastore", username, password)
    web = WebServer(simulated, host, int(port), certificate, key)
    control = ControlServer(runtime_dir(state) / "control.sock", commands)
    (state / "endpoint").write_text(f"{host}:{web.server_address[1]}\n")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    for server in (web, control):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    typer.echo(f"ready: https://{host}:{web.server_address[1]}/sdk user {username}")
    sys.stdout.flush()
    stopping.wait()
    for server in (web, control):
        server.shutdown()
        server.server_close()


@scenarios.command("list")
def list_scenarios() -> None:
    """Lists the scenarios that come with the lab."""
    for name, file in shipped().items():
        typer.echo(f"{name:36} {read(file).title}")


@scenarios.command()
def show(scenario: Annotated[str, typer.Argument(metavar="FILE|NAME")]) -> None:
    """Checks a scenario, and shows its file."""
    _read(scenario)
    typer.echo(find(scenario).read_text(encoding="utf-8"), nl=False)


def _read(scenario: str) -> Scenario:
    """From a file or by name; what is wrong with it ends the command."""
    try:
        return read(find(scenario))
    except ScenarioError as error:
        typer.echo(f"sendense-lab: {error}", err=True)
        raise typer.Exit(2) from error


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
