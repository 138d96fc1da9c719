# SPDX-License-Identifier: Apache-2.0
"""What every command needs: where the installation is, its services, how to answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import unanswered
from sendense_cli.exits import Exit, exit_code, show_error
from sendense_cli.remote import Hub
from sendense_common import rpc, telemetry
from sendense_common.errors import SendenseError, invalid
from sendense_common.paths import Installation

_DEFAULT_STATE = "~/.local/state/sendense"

State = Annotated[
    Path,
    typer.Option(
        "--state",
        envvar="SENDENSE_STATE",
        metavar="DIR",
        help="Directory of the installation, as given to `sendense up`.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Answer with JSON, for programs.")]

DEFAULT_STATE = Path(os.path.expanduser(_DEFAULT_STATE))  # noqa: PTH111 - Path.expanduser raises without a home

# Where nobody watches, nothing is folded: output that goes into a pipe is read by line.
_PIPE_WIDTH = 200
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH)
_REMEDY = "Is it running? Start it with `sendense up`, and name its directory with --state or SENDENSE_STATE."


NEEDS_CREDENTIALS = "it needs the credentials service, which has no port"
_elsewhere: list[Hub] = []


def ask_hub_elsewhere(hub: Hub) -> None:
    """All commands of this process ask this hub, and not the one of an installation here."""
    _elsewhere[:] = [hub]


class Session:
    """One command's."""

    def __init__(self, state: Path, *, as_json: bool) -> None:
        self.installation = Installation(state)
        self.as_json = as_json
        self.elsewhere = _elsewhere[0] if _elsewhere else None
        """The hub that --hub names."""

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[grpc.aio.Channel]:
        """The hub's operator services; errors of calls become SendenseErrors."""
        if self.elsewhere:
            async with self.elsewhere.channel() as channel:
                yield channel
            return
        log = self.installation.logs / "hub.log"
        async with self._channel(self.installation.hub.api_socket, "the hub", log) as channel:
            yield channel

    @contextlib.asynccontextmanager
    async def credentials(self) -> AsyncIterator[grpc.aio.Channel]:
        """The credentials service's operator socket."""
        self.only_at_the_centre(NEEDS_CREDENTIALS)
        socket = self.installation.credentials.operator_socket
        log = self.installation.logs / "credentials.log"
        async with self._channel(socket, "the credentials service", log) as channel:
            yield channel

    def only_at_the_centre(self, why: str) -> None:
        """Raises INVALID_REQUEST when --hub names a hub elsewhere."""
        if self.elsewhere:
            raise invalid(
                "--hub",
                f"this command runs at the centre: {why}",
                remedy="Run it on the hub's host, as the services' user, without --hub and SENDENSE_HUB.",
            )

    @contextlib.asynccontextmanager
    async def _channel(self, socket: Path, what: str, log: Path) -> AsyncIterator[grpc.aio.Channel]:
        if not socket.exists():
            raise SendenseError(
                Reason.REASON_SERVICE_UNAVAILABLE,
                f"{what} does not run: there is no {socket}",
                remedy=_REMEDY,
            )
        async with rpc.connect(socket) as channel:
            try:
                yield channel
            except grpc.aio.AioRpcError as error:
                raise unanswered.told(error, what=what, where=str(socket), log=log) from error

    def answer(self, message: Message | Mapping[str, Any], people: Table | str | None) -> None:
        """Shows a result: the message as JSON, or what is for people."""
        if self.as_json:
            facts = as_dict(message) if isinstance(message, Message) else dict(message)
            sys.stdout.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        elif people is not None:
            console.print(people, soft_wrap=isinstance(people, str), highlight=False)

    def run(self, work: Coroutine[Any, Any, int | None], *, name: str = "") -> None:
        """Runs a command and ends the process with its exit code.

        Args:
            work: gives an exit code; None is success.
            name: of the span around it, for commands that are worth one.
        """
        if name and not self.elsewhere:
            telemetry.configure("sendense-cli", spans_socket=self.installation.hub.telemetry_socket)
        try:
            code = asyncio.run(_spanned(work, name)) or Exit.OK
        except SendenseError as error:
            show_error(error, as_json=self.as_json)
            code = exit_code(error)
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        finally:
            if name:
                telemetry.shutdown()
        raise typer.Exit(int(code))


async def _spanned(work: Coroutine[Any, Any, int | None], name: str) -> int | None:
    if not name:
        return await work
    with telemetry.span(name):
        return await work


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON values: names as in the contract, fields that are not set included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A plain table; columns in `right` are numbers. Without any name, it has no line of names."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False, show_header=any(columns))
    for column in columns:
        number = column in right
        made.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
