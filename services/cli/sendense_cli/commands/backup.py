# SPDX-License-Identifier: Apache-2.0
"""`sendense backup`."""

from __future__ import annotations

import asyncio
import enum
import sys
import uuid
from typing import Annotated

import typer

from sendense.hub.v1 import backup_service_pb2, job_pb2
from sendense.hub.v1.backup_service_pb2_grpc import BackupServiceStub
from sendense_cli import job_view, words
from sendense_cli.exits import Exit
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console

app = typer.Typer(no_args_is_help=True, help="Start backups.")


class Mode(enum.StrEnum):
    """Full or incremental."""

    AUTO = "auto"
    FULL = "full"
    INCREMENTAL = "incremental"


class Quiesce(enum.StrEnum):
    """How hard to try for consistency in the guest."""

    REQUIRE = "require"
    TRY = "try"
    OFF = "off"


@app.command()
def start(
    vm: Annotated[str, typer.Argument(help="Name, ID (vm-123) or instance UUID.")],
    vcenter: Annotated[str, typer.Option(metavar="N", help="Its vCenter, if the name is not unique.")] = "",
    mode: Annotated[
        Mode, typer.Option(help="auto: incremental where possible; incremental: fail where it is not.")
    ] = Mode.AUTO,
    quiesce: Annotated[
        Quiesce, typer.Option(help="try: fall back to a crash-consistent snapshot, and say so.")
    ] = Quiesce.TRY,
    repository: Annotated[str, typer.Option(metavar="N", help="Where the point is kept.")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Show progress until it has ended; Ctrl-C detaches.")
    ] = False,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Start a backup of a VM. Exit code 1 if it failed (with --wait, or at once).

    Examples: sendense backup start web01 --wait; sendense backup start vm-42 --vcenter prod --mode full
    """
    session = Session(state, as_json=as_json)
    request = backup_service_pb2.StartBackupRequest(
        request_id=str(uuid.uuid4()),
        vm=vm,
        vcenter_name=vcenter,
        mode=job_pb2.BackupMode.Value(f"BACKUP_MODE_{mode.name}"),
        quiesce=job_pb2.Quiesce.Value(f"QUIESCE_{quiesce.name}"),
        repository_name=repository,
    )
    session.run(_start(session, request, wait=wait), name=f"sendense backup start {vm}")


async def _start(session: Session, request: backup_service_pb2.StartBackupRequest, *, wait: bool) -> int:
    async with session.hub() as hub:
        job = (await BackupServiceStub(hub).StartBackup(request)).job
    if wait and job.state != job_pb2.JOB_STATE_FAILED:
        try:
            job = await job_view.follow(session, job.job_id)
        except asyncio.CancelledError:
            detached(job.job_id)
            raise
    failed = job.state == job_pb2.JOB_STATE_FAILED
    if wait or failed:
        if session.as_json:
            session.answer(job, None)
        else:
            console.print(job_view.summary(job))
        return job_view.exit_for(job)
    session.answer(job, f"job {job.job_id}; watch it with: sendense job watch {words.short(job.job_id)}")
    return Exit.OK


def detached(job_id: str) -> None:
    """Ctrl-C ended the watching, not the job."""
    sys.stderr.write(
        f"\ndetached; job {job_id} goes on. Watch it with: sendense job watch {words.short(job_id)}, "
        f"stop it with: sendense job cancel {words.short(job_id)}\n"
    )
