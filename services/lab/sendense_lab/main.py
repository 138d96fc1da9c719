# SPDX-License-Identifier: Apache-2.0
"""`sendense-lab`: things to test and demonstrate Sendense with."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from sendense_common.paths import made_runtime_dir
from sendense_lab.accept import AcceptError, AcceptOptions, Address, as_table, run_accept
from sendense_lab.scenarios import Scenario, ScenarioError, find, load, read, shipped
from sendense_lab.vcenter.certificates import make_certificates, make_kind
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
    commands.show_certificate = lambda kind: web.show(
        *((certificate, key) if kind == "good" else make_kind(state, kind))
    )
    with made_runtime_dir(state) as run:
        control = ControlServer(run / "control.sock", commands)
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


@app.command()
def accept(
    state: Annotated[
        Path, typer.Option(envvar="SENDENSE_STATE", help="Of a running `sendense up` near that vCenter.")
    ],
    vcenter: Annotated[str, typer.Option(metavar="HOST[:PORT]", help="A real vCenter, or a simulated one.")],
    username: Annotated[str, typer.Option(help="Who may change, snapshot and back up the VM.")],
    password_file: Annotated[Path, typer.Option(help="File with the password; a final newline is dropped.")],
    vm: Annotated[list[str], typer.Option(metavar="NAME", help="A VM to throw away; repeatable.")],
    i_may_destroy_this_vm: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same name again: you mean it.")
    ] = None,
    ca_file: Annotated[str, typer.Option(metavar="F", help="PEM file of its certificate's authority.")] = "",
    thumbprint: Annotated[str, typer.Option(metavar="SHA256", help="Of its certificate, instead.")] = "",
    move_to: Annotated[str, typer.Option(metavar="DATASTORE", help="Where a disk may be moved to.")] = "",
    only: Annotated[
        list[str] | None, typer.Option(metavar="CHECK", help="Only this one; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the report is written, as JSON.")] = Path("accept.json"),
) -> None:
    """Runs the scenarios that can be provoked against a vCenter, with a VM to throw away.

    The VM is switched off and on, gets snapshots and a disk, a disk of it grows. Prints a table of what
    passed, failed, or cannot be provoked and why. Exit code 1 if something failed, 2 if it could not begin.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if bool(ca_file) == bool(thumbprint):
        typer.echo("sendense-lab: give either --ca-file or --thumbprint", err=True)
        raise typer.Exit(2)
    host, _, port = vcenter.partition(":")
    options = AcceptOptions(
        state=state,
        address=Address(host, int(port or 443), ca_file, thumbprint),
        username=username,
        password=password_file.read_text(encoding="utf-8").removesuffix("\n"),
        vms=vm,
        may_destroy=i_may_destroy_this_vm or [],
        move_to=move_to,
        only=only or [],
    )
    try:
        report = asyncio.run(run_accept(options))
    except AcceptError as error:
        typer.echo(f"sendense-lab: {error}", err=True)
        raise typer.Exit(2) from error
    output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(as_table(report), nl=False)
    if any(row["outcome"] == "failed" for rows in report["vms"].values() for row in rows):
        raise typer.Exit(1)


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
