# SPDX-License-Identifier: Apache-2.0
"""`sendense up`."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import stack
from sendense_cli.session import DEFAULT_STATE, Json, Session, State
from sendense_common.errors import SendenseError


def up(
    state: State = DEFAULT_STATE,
    listen: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Where agents of other sites dial; port 0 takes a free one."),
    ] = "127.0.0.1:0",
    repository: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Where restore points are kept; several times for several."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run credentials, hub and one local agent until Ctrl-C; prints "ready" when all of them work.

    Logs are in DIR/logs. Restore points are kept in DIR/hub/repository unless --repository says otherwise.

    Example: sendense up --state /var/lib/sendense --repository default=/backup
    """
    session = Session(state, as_json=as_json)
    options = stack.StackOptions(listen=listen, repositories=repository or ())
    session.run(_up(session, options))


async def _up(session: Session, options: stack.StackOptions) -> int:
    def say(text: str) -> None:
        if not session.as_json:
            sys.stderr.write(text + "\n")

    told = asyncio.create_task(stack.until_signal())
    await asyncio.sleep(0)
    async with stack.running(session.installation, options, say) as services:
        endpoint = session.installation.hub.endpoint_file.read_text().strip()
        session.answer(
            {
                "ready": True,
                "state": str(session.installation.state),
                "ssh": endpoint,
                "pids": services.pids(),
            },
            f"ready: agents dial {endpoint}; state in {session.installation.state}; Ctrl-C stops everything",
        )
        sys.stdout.flush()
        ended = asyncio.create_task(services.wait_any_ended())
        await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            name = ended.result()
            raise SendenseError(
                Reason.REASON_SERVICE_UNAVAILABLE,
                f"{name} ended unexpectedly; everything is stopped",
                remedy=f"Read {session.installation.logs / f'{name}.log'}.",
            )
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
    return 0
