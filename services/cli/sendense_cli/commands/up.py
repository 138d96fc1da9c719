# SPDX-License-Identifier: Apache-2.0
"""`sendense up`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Annotated

import grpc
import typer

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2, job_service_pb2
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense_cli import stack
from sendense_cli.exits import Exit
from sendense_cli.session import DEFAULT_STATE, Json, Session, State
from sendense_common.errors import SendenseError

_GO_ON = {
    job_pb2.JOB_STATE_QUEUED,
    job_pb2.JOB_STATE_RUNNING,
    job_pb2.JOB_STATE_WAITING,
}
_ASK_WITHIN_S = 5.0
_MANY = 1000


def _host_and_port(text: str) -> str:
    if not text:
        return text
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return text


def _names_and_paths(texts: list[str] | None) -> list[str]:
    names = [text.partition("=")[0] for text in texts or ()]
    for name, text in zip(names, texts or (), strict=True):
        if not name or not text.partition("=")[2]:
            raise typer.BadParameter(f"{text!r} is not NAME=PATH")
        if names.count(name) > 1:
            raise typer.BadParameter(f"the name {name!r} is given twice")
    return texts or []


def up(
    state: State = DEFAULT_STATE,
    listen: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            callback=_host_and_port,
            show_default=False,
            help="Where agents of other sites dial; port 0 takes a free one. Later starts take the same. "
            "At first: a free port of 127.0.0.1, which only this host reaches.",
        ),
    ] = "",
    repository: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            callback=_names_and_paths,
            help="Where restore points are kept; several times for several.",
        ),
    ] = None,
    wait_hours: Annotated[
        float,
        typer.Option(
            min=0,
            max=24 * 366,
            metavar="H",
            help="How long an interrupted backup waits for its site, its vCenter or for room.",
        ),
    ] = 48,
    tries: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="N",
            help="Attempts of a backup in a row that may fail without getting further.",
        ),
    ] = 5,
    cbt_audit_percent: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="P",
            help="Share of what did not change that each incremental reads again and compares.",
        ),
    ] = 1,
    cbt_audit_max_bytes: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of that, at most so much of each disk and backup.")
    ] = 1 << 30,
    api_listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Serve the API here too; see `sendense-hub --help`.")
    ] = "",
    api_tls_certificate: Annotated[str, typer.Option(metavar="FILE", help="Its certificate, PEM.")] = "",
    api_tls_key: Annotated[str, typer.Option(metavar="FILE", help="Its private key, PEM.")] = "",
    api_client_ca: Annotated[str, typer.Option(metavar="FILE", help="CA of client certificates, PEM.")] = "",
    as_json: Json = False,
) -> None:
    """Run credentials, hub and one local agent until Ctrl-C; prints "ready" when all of them work.

    Logs are in DIR/logs. Restore points are kept in DIR/hub/repository unless --repository says otherwise.

    Example: sendense up --state /var/lib/sendense --repository default=/backup
    """
    session = Session(state, as_json=as_json)
    audit = [f"--cbt-audit-percent={cbt_audit_percent}", f"--cbt-audit-max-bytes={cbt_audit_max_bytes}"]
    patience = [f"--wait-hours={wait_hours}", f"--tries={tries}"]
    api = {
        "--api-listen": api_listen,
        "--api-tls-certificate": api_tls_certificate,
        "--api-tls-key": api_tls_key,
        "--api-client-ca": api_client_ca,
    }
    given = [f"{name}={value}" for name, value in api.items() if value]
    options = stack.StackOptions(
        listen=listen, repositories=repository or (), hub_options=[*patience, *audit, *given]
    )
    session.run(_up(session, options))


async def _up(session: Session, options: stack.StackOptions) -> int:
    session.only_at_the_centre("it starts the services")
    told = asyncio.create_task(stack.until_signal())
    await asyncio.sleep(0)
    ready = asyncio.Event()
    serving = asyncio.create_task(_serve(session, options, told, ready))
    await asyncio.wait({told, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.is_set():
        serving.cancel()  # a start is not waited for
    try:
        await serving
    except asyncio.CancelledError:
        _say(session, "interrupted while it started; everything is stopped")
        return Exit.INTERRUPTED
    return Exit.OK


async def _serve(
    session: Session, options: stack.StackOptions, told: asyncio.Task[None], ready: asyncio.Event
) -> None:
    """Runs everything until `told` is done; sets `ready` when it answers."""

    def say(text: str) -> None:
        _say(session, text)

    interrupted = 0
    async with stack.running(session.installation, options, say) as services:
        endpoint = session.installation.hub.endpoint_file.read_text().strip()
        going_on = [job for job in await _unfinished(session) if job.interruptions]
        ready.set()
        session.answer(
            {
                "ready": True,
                "state": str(session.installation.state),
                "ssh": endpoint,
                "pids": services.pids(),
                "interrupted_jobs": len(going_on),
            },
            f"ready: agents dial {endpoint}; state in {session.installation.state}; Ctrl-C stops everything",
        )
        sys.stdout.flush()
        if going_on:
            say(f"{_backups(len(going_on))} interrupted before, and will go on: see `sendense job list`")
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
        interrupted = len(await _unfinished(session))
        if interrupted:
            say(
                f"{_backups(interrupted)} interrupted; at the next start they go on. Until then their "
                "snapshots stay at the vCenter"
            )
    if session.as_json:
        session.answer({"stopped": True, "interrupted_jobs": interrupted}, None)
    say("everything is stopped")


def _say(session: Session, text: str) -> None:
    if not session.as_json:
        sys.stderr.write(text + "\n")


def _backups(count: int) -> str:
    return "1 backup was" if count == 1 else f"{count} backups were"


async def _unfinished(session: Session) -> list[job_pb2.Job]:
    """Jobs that run, or wait to; none when the hub does not say."""
    with contextlib.suppress(SendenseError, grpc.aio.AioRpcError):
        async with session.hub() as hub:
            request = job_service_pb2.ListJobsRequest(page_size=_MANY)
            answer = await JobServiceStub(hub).ListJobs(request, timeout=_ASK_WITHIN_S)
            return [job for job in answer.jobs if job.state in _GO_ON]
    return []
