# SPDX-License-Identifier: Apache-2.0
"""`sendense repository`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sendense.hub.v1 import repository_service_pb2 as pb
from sendense.hub.v1 import system_service_pb2
from sendense.hub.v1.repository_service_pb2_grpc import RepositoryServiceStub
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceStub
from sendense_cli import words
from sendense_cli.exits import Exit
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, as_dict, console, table

app = typer.Typer(no_args_is_help=True, help="Repositories: list, show, scan.")

Name = Annotated[str, typer.Argument(help="Its name.")]
# What no complete point suffers from.
_HARMLESS = frozenset(
    {
        pb.SCAN_FINDING_KIND_HALF_POINT,
        pb.SCAN_FINDING_KIND_HALF_DELETED,
        pb.SCAN_FINDING_KIND_FOREIGN,
        pb.SCAN_FINDING_KIND_VCENTER_UNKNOWN,
    }
)


@app.command("list")
def list_(state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """List the repositories of the hub, with their space.

    Example: sendense repository list
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            request = system_service_pb2.ListRepositoriesRequest()
            answer = await SystemServiceStub(hub).ListRepositories(request)
        rows = [
            [each.name, each.path, words.size(each.free_bytes), words.size(each.total_bytes)]
            for each in answer.repositories
        ]
        session.answer(answer, table(["NAME", "DIRECTORY", "FREE", "OF"], rows, right=["FREE", "OF"]))

    session.run(work())


@app.command()
def show(name: Name = "default", state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show a repository: its space, and what points the catalog knows in it.

    Example: sendense repository show default
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            found = await RepositoryServiceStub(hub).GetRepository(pb.GetRepositoryRequest(name=name))
        facts = [
            ["Repository", found.repository.name],
            ["Directory", found.repository.path],
            ["ID", found.repository_id],
            [
                "Free",
                f"{words.size(found.repository.free_bytes)} of {words.size(found.repository.total_bytes)}",
            ],
            ["VMs", str(found.virtual_machines_count)],
            ["Points", f"{found.points_count}, the newest of {words.moment(found.newest_point_time)}"],
            ["Chains", str(found.chains_count)],
            ["Stored", words.size(found.stored_bytes)],
        ]
        session.answer(found, table(["", ""], facts))

    session.run(work())


@app.command()
def scan(name: Name = "default", state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Put the points that a repository holds into the catalog, and tell what is wrong or foreign in it.

    For a catalog that was lost, or a repository that another hub has written. It can be repeated at any time:
    nothing is taken out of the catalog, no file is touched. Exit code 1: points are damaged, missing, or not
    as the catalog has them.

    Example: sendense repository scan default
    """
    session = Session(state, as_json=as_json)

    async def work() -> int:
        findings: list[pb.ScanFinding] = []
        last = pb.ScanRepositoryResponse()
        async with session.hub() as hub:
            with _bar(session) as progress:
                task = progress.add_task("scanning", total=None)
                call = RepositoryServiceStub(hub).ScanRepository(pb.ScanRepositoryRequest(name=name))
                async for report in call:
                    findings += report.findings
                    progress.update(task, total=report.total_count, completed=report.looked_at_count)
                    last = report
        _show(session, last.summary, findings)
        return Exit.FAILED if any(each.kind not in _HARMLESS for each in findings) else Exit.OK

    session.run(work(), name="repository scan")


@app.command("restore-catalog")
def restore_catalog(
    source: Annotated[
        Path, typer.Argument(metavar="REPOSITORY|FILE", help="A repository's directory, or one copy in it.")
    ],
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Put the copy of the catalog that is in a repository in the place of one that was lost.

    Stop the hub first. The newest copy is taken; what is there is moved aside. Afterwards start the hub, and
    scan the repository: the copy does not know what happened since.

    Example: sendense repository restore-catalog /backup/sendense
    """
    session = Session(state, as_json=as_json)
    hub = session.installation.hub
    command = [sys.executable, "-m", "sendense_hub.main", "restore-catalog", "--state", str(hub.state)]

    async def work() -> int:
        session.only_at_the_centre("it needs the hub's files")
        done = subprocess.run([*command, str(source)], stdout=subprocess.PIPE, check=False)  # noqa: ASYNC221
        if done.returncode:
            return Exit.FAILED
        facts = json.loads(done.stdout)
        lines = [
            f"taken from {facts['taken_from']}",
            *(f"moved aside: {path}" for path in facts["moved_aside"]),
            *(f"ended, for it had not ended in the copy: job {job}" for job in facts["ended_jobs"]),
            "Now start the hub, and run `sendense repository scan` for each repository.",
        ]
        session.answer(facts, "\n".join(lines))
        return Exit.OK

    session.run(work())


def _show(session: Session, summary: pb.ScanSummary, findings: list[pb.ScanFinding]) -> None:
    facts: dict[str, Any] = as_dict(summary)
    facts["findings"] = [as_dict(each) for each in findings]
    if session.as_json:
        session.answer(facts, None)
        return
    for each in findings:
        kind = pb.ScanFindingKind.Name(each.kind).removeprefix("SCAN_FINDING_KIND_").lower().replace("_", " ")
        console.print(f"[bold]{kind}[/bold] {escape(each.path)}: {escape(each.finding)}", soft_wrap=True)
        console.print(f"  what to do: {escape(each.remedy)}", soft_wrap=True, highlight=False)
    rows = [
        [each.name, "yes" if each.known else "no", ", ".join(each.names_then), each.vcenter_uuid,
         str(each.points_count)]
        for each in summary.vcenters
    ]  # fmt: skip
    if rows:
        columns = ["VCENTER", "KNOWN", "CALLED THEN", "UUID", "POINTS"]
        console.print(table(columns, rows, right=["POINTS"]))
    console.print(
        f"{summary.points_count} complete points: {summary.added_count} new in the catalog, "
        f"{summary.renamed_count} with a new name of vCenter or repository, {summary.busy_count} busy; "
        f"{len(findings)} findings",
        soft_wrap=True,
        highlight=False,
    )


def _bar(session: Session) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("VMs"),
        console=console,
        transient=True,
        disable=session.as_json or not console.is_terminal,
    )
