# SPDX-License-Identifier: Apache-2.0
"""`sendense point`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sendense.hub.v1 import point_service_pb2 as pb
from sendense.hub.v1.point_service_pb2_grpc import PointServiceStub
from sendense_cli import words
from sendense_cli.session import DEFAULT_STATE, Json, Session, State, console, table

app = typer.Typer(no_args_is_help=True, help="Restore points: list, show, verify, export, delete.")

Id = Annotated[str, typer.Argument(metavar="POINT", help="Its ID, or the first 6 or more characters of it.")]


class Format(enum.StrEnum):
    """Of an exported disk."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"


@app.command("list")
def list_(
    vm: Annotated[str, typer.Argument(help="Only of VMs with this name, ID (vm-123) or instance UUID.")] = "",
    vcenter: Annotated[str, typer.Option(metavar="N", help="Only of this vCenter.")] = "",
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=1000)] = 50,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """List restore points, newest first.

    Example: sendense point list web01
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await PointServiceStub(hub).ListPoints(
                pb.ListPointsRequest(vm=vm, vcenter_name=vcenter, page_size=limit)
            )
        rows = [
            [words.short(each.point_id), each.vm_name, each.vcenter_name, words.moment(each.snapshot_time),
             each.kind, each.quiesce_result.replace("_", " "), str(len(each.disks)),
             words.size(sum(disk.stored_bytes for disk in each.disks)), words.health(each)]
            for each in answer.points
        ]  # fmt: skip
        columns = ["POINT", "VM", "VCENTER", "TAKEN", "KIND", "SNAPSHOT IS", "DISKS", "STORED", "VERIFIED"]
        session.answer(answer, table(columns, rows, right=["DISKS", "STORED"]))

    session.run(work())


@app.command()
def show(point: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Show a restore point and its disks.

    Example: sendense point show 8c1d44f0
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            found = (await PointServiceStub(hub).GetPoint(pb.GetPointRequest(point_id=point))).point
        if as_json:
            session.answer(found, None)
            return
        facts = [
            ["Point", found.point_id],
            ["VM", f"{found.vm_name} at {found.vcenter_name}"],
            ["Snapshot", f"{words.moment(found.snapshot_time)}, {found.quiesce_result.replace('_', ' ')}"],
            ["Kind", found.kind],
            ["Job", found.job_id],
            ["Files", f"{found.repository_name}: {found.directory}"],
            ["Built on it", ", ".join(map(words.short, found.dependant_point_ids)) or "-"],
            ["Verified", words.health(found)],
            *(
                [
                    "Damaged",
                    f"disk {disk.key}, found {words.moment(disk.damage.find_time)}: {disk.damage.message}",
                ]
                for disk in found.disks
                if disk.HasField("damage")
            ),
            *(["Not protected", text] for text in found.unprotected_disks),
        ]
        console.print(table(["", ""], facts))
        rows = [
            [str(disk.key), disk.label, words.size(disk.capacity_bytes), disk.mode,
             words.short(disk.parent_point_id) or "-", words.size(disk.stored_bytes), disk.layer_file]
            for disk in found.disks
        ]  # fmt: skip
        columns = ["KEY", "DISK", "CAPACITY", "MODE", "BUILT ON", "STORED", "LAYER"]
        console.print(table(columns, rows, right=["CAPACITY", "STORED"]))

    session.run(work())


@app.command()
def verify(point: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Read every byte of a point and compare it with what was noted when it was made. Exit code 1: damaged.

    Example: sendense point verify 8c1d44f0
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        last = pb.VerifyPointResponse()
        async with session.hub() as hub:
            with _bar(session) as (progress, task):
                async for report in PointServiceStub(hub).VerifyPoint(pb.VerifyPointRequest(point_id=point)):
                    last = report
                    progress.update(task, total=report.total_bytes, completed=report.read_bytes)
        facts = {
            "point": point,
            "ok": last.done,
            "disks": [{"key": each.disk_key, "sha256": each.sha256.hex()} for each in last.digests],
        }
        rows = [[str(each.disk_key), each.sha256.hex()] for each in last.digests]
        session.answer(facts, table(["DISK", "SHA-256 (every byte is as it was written)"], rows))

    session.run(work(), name=f"sendense point verify {point}")


@app.command()
def export(
    point: Id,
    disk: Annotated[
        int,
        typer.Option(
            metavar="KEY", min=0, max=2**31 - 1, help="Device key of the disk, as `point show` lists it."
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="PATH", help="New file on the hub's host.")],
    file_format: Annotated[Format, typer.Option("--format", help="Format of the file.")] = Format.RAW,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the file with what was noted when the point was made.",
        ),
    ] = True,
    state: State = DEFAULT_STATE,
    as_json: Json = False,
) -> None:
    """Write one disk of a point to a file; it appears only when every byte of it is as it was backed up.

    Nothing is overwritten. Exit code 1: the point is damaged, and there is no file.

    Example: sendense point export 8c1d44f0 --disk 2000 --format qcow2 --output /tmp/web01.qcow2
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        path = output.absolute()
        request = pb.ExportDiskRequest(
            point_id=point,
            disk_key=disk,
            format=pb.DiskFormat.Value(f"DISK_FORMAT_{file_format.name}"),
            output_path=str(path),
            skip_verification=not verify,
        )
        last = pb.ExportDiskResponse()
        async with session.hub() as hub:
            with _bar(session) as (progress, task):
                async for report in PointServiceStub(hub).ExportDisk(request):
                    last = report
                    progress.update(task, total=100, completed=report.percent)
        facts = {
            "path": str(path),
            "bytes": last.file_bytes,
            "format": file_format.value,
            "verified": last.verified,
        }
        told = "every byte is as it was backed up" if last.verified else "not compared with the ledgers"
        session.answer(facts, f"wrote {path} ({words.size(last.file_bytes)}): {told}")

    session.run(work(), name=f"sendense point export {point}")


@app.command()
def delete(point: Id, state: State = DEFAULT_STATE, as_json: Json = False) -> None:
    """Delete a restore point. Refused while other points are built on it.

    Example: sendense point delete 8c1d44f0
    """
    session = Session(state, as_json=as_json)

    async def work() -> None:
        async with session.hub() as hub:
            answer = await PointServiceStub(hub).DeletePoint(pb.DeletePointRequest(point_id=point))
        session.answer(answer, f"deleted; {words.size(answer.freed_bytes)} are free again")

    session.run(work())


class _bar:  # noqa: N801 - used as a function
    """A progress bar on a terminal; elsewhere it is silent."""

    def __init__(self, session: Session) -> None:
        self._progress = Progress(
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=session.as_json or not console.is_terminal,
        )

    def __enter__(self) -> tuple[Progress, TaskID]:
        self._progress.start()
        return self._progress, self._progress.add_task("")

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
