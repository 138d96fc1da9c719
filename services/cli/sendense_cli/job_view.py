# SPDX-License-Identifier: Apache-2.0
"""Jobs on the screen: live bars while one runs, a summary when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import job_service_pb2
from sendense.hub.v1.job_service_pb2_grpc import JobServiceStub
from sendense_cli import words
from sendense_cli.exits import Exit
from sendense_cli.patience import AGAIN_AFTER_S, Patience
from sendense_cli.session import Session, console, table
from sendense_common.errors import SendenseError

_COLOURS = {
    pb.JOB_STATE_SUCCEEDED: "green",
    pb.JOB_STATE_FAILED: "red",
    pb.JOB_STATE_CANCELLED: "yellow",
    pb.JOB_STATE_CANCELLING: "yellow",
    pb.JOB_STATE_RUNNING: "cyan",
    pb.JOB_STATE_WAITING: "yellow",
}
_WENT_ON = {
    "same_snapshot": "went on with the same snapshot",
    "new_snapshot": "went on with a new snapshot",
    "from_the_start": "copied from the start",
}
_SHORT_MODES = {"incremental": "incr"}
_BEFORE_IT_RUNS = {pb.JOB_PHASE_UNSPECIFIED, pb.JOB_PHASE_QUEUED}
_ENDED = {pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_FAILED, pb.JOB_STATE_CANCELLED}
# A watch is asked for anew so often: on a busy host gRPC may keep back what it was told, for good.
_ANEW_EVERY_S = 60.0


def exit_for(job: pb.Job) -> Exit:
    """Of a command that waited for the job."""
    return Exit.OK if job.state == pb.JOB_STATE_SUCCEEDED else Exit.FAILED


def state_text(job: pb.Job) -> Text:
    """The state in its colour, with the phase where it is not over, or ended too soon."""
    state = words.state(job)
    phase = job.ended_in_phase if job.state in _ENDED else job.phase
    if job.state not in {pb.JOB_STATE_SUCCEEDED, pb.JOB_STATE_QUEUED} and phase not in _BEFORE_IT_RUNS:
        state += f" ({words.phase(phase)})"
    return Text(state, style=_COLOURS.get(job.state, ""))


async def follow(session: Session, job_id: str, patience: Patience | None = None) -> pb.Job:
    """Shows a job until it has ended; bars on a terminal, a line per phase elsewhere, nothing for --json.

    A job goes on when the hub was restarted, and so does this.

    Raises:
        SendenseError: the job is not there; the hub does not answer for as long as `patience` has (default:
            five minutes).
    """
    job = pb.Job()
    patient = patience or Patience(lambda text: None if session.as_json else sys.stderr.write(text + "\n"))
    request = job_service_pb2.WatchJobRequest(job_id=job_id)
    with _display(session) as display:
        while job.state not in _ENDED:
            try:
                # A channel of its own each time: one to a hub that is gone takes its time to try again.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_ANEW_EVERY_S), session.hub() as hub:
                        async for update in JobServiceStub(hub).WatchJob(request):
                            job = update.job
                            patient.heard()
                            display.show(job)
            except SendenseError as error:
                await patient.wait(error)
            else:
                await asyncio.sleep(AGAIN_AFTER_S)
    return job


class _Silent:
    def show(self, job: pb.Job) -> None:
        """Nothing."""


class _Lines:
    """For logs: one line whenever the phase changes."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, job: pb.Job) -> None:
        """One line, if there is news."""
        now = words.state(job) if job.state in _ENDED else words.phase(job.phase)
        if job.state == pb.JOB_STATE_WAITING:
            now = _waiting(job)
        if now != self._last:
            self._last = now
            console.print(f"{words.short(job.job_id)} {job.vm_name}: {now}", highlight=False)


class _Rate(ProgressColumn):
    """In the unit that all our tables have."""

    def render(self, task: Task) -> Text:
        """As "93.1 MiB/s"."""
        speed = task.finished_speed or task.speed
        return Text(f"{words.rate(speed, 1)} MiB/s" if speed else "", style="progress.data.speed")


class _Bars:
    """For a terminal: the phase, and one bar per disk."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            _Rate(),
            TimeRemainingColumn(compact=True),
            auto_refresh=False,
        )
        self._tasks: dict[int, TaskID] = {}

    def show(self, job: pb.Job) -> None:
        """Moves the bars."""
        for disk in job.disks:
            if disk.state == pb.DISK_STATE_SKIPPED:
                continue
            total = max(1, disk.planned_read_bytes)
            if disk.key not in self._tasks:
                self._tasks[disk.key] = self._progress.add_task(f"{disk.label} ({disk.mode})", total=total)
            done = disk.state == pb.DISK_STATE_COPIED
            self._progress.update(self._tasks[disk.key], completed=total if done else disk.read_bytes)
        now = _waiting(job) if job.state == pb.JOB_STATE_WAITING else words.phase(job.phase)
        head = Text.assemble((job.vm_name, "bold"), f"  {now}")
        head.append(f"  {words.duration(words.elapsed_s(job))}", style="dim")
        self._live.update(Group(head, self._progress) if self._tasks else head, refresh=True)


@contextlib.contextmanager
def _display(session: Session) -> Iterator[_Silent | _Lines | _Bars]:
    if session.as_json:
        yield _Silent()
    elif not console.is_terminal:
        yield _Lines()
    else:
        # Gone at the end: the summary that follows says it all.
        with Live(console=Console(file=sys.stderr), transient=True) as live:
            yield _Bars(live)


def limit_text(job: pb.Job) -> str:
    """How fast it may read."""
    if not job.bytes_per_second:
        return "no limit"
    return f"at most {words.size(job.bytes_per_second)}/s, all disks together"


def summary(job: pb.Job) -> Group:
    """All there is to know of a job."""
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_column(style="bold", no_wrap=True)
    head.add_column(overflow="fold")
    facts: list[tuple[str, str | Text]] = [
        ("Job", job.job_id),
        ("VM", f"{job.vm_name} at {job.vcenter_name}"),
        ("State", state_text(job)),
    ]
    facts += [
        ("Started", words.moment(job.start_time)),
        ("Took", words.took(job)),
    ]
    if job.bytes_per_second:
        facts.append(("Limit", limit_text(job)))
    facts += [("Interrupted", interrupted(job, each)) for each in job.interruptions]
    if job.quiesce_result:
        facts.append(("Snapshot", job.quiesce_result.replace("_", " ")))
    if job.point_id:
        facts.append(("Point", job.point_id))
    if job.HasField("failure"):
        facts.append(("Cause", Text(job.failure.message, style="red")))
        if job.failure.remedy:
            facts.append(("What to do", job.failure.remedy))
    for (mode, why), labels in _more_because(job).items():
        facts.append((f"{mode.capitalize()} copy", f"{', '.join(labels)}: {why.replace('_', ' ')}"))
    for disk in job.disks:
        if disk.state == pb.DISK_STATE_SKIPPED:
            why = disk.mode_reason.replace("_", " ")
            facts.append(("Not protected", Text(f"{disk.label}: {why}", style="yellow")))
    if audited_bytes := sum(disk.audited_bytes for disk in job.disks):
        differed = sum(disk.audit_mismatches for disk in job.disks)
        what = f"{words.size(audited_bytes)} of what did not change, {differed or 'nothing'} differed"
        facts.append(("Audited", Text(what, style="red" if differed else "")))
    for warning in job.warnings:
        facts.append(("Warning", Text(warning.message, style="yellow")))
    for name, value in facts:
        head.add_row(name, value)
    return Group(head, Text(""), disks(job)) if job.disks else Group(head)


def interrupted(job: pb.Job, interruption: pb.JobInterruption) -> Text:
    """What happened to one attempt, and what became of it."""
    text = Text(f"attempt {interruption.attempt} in phase {words.phase(interruption.phase)}: ")
    text.append(interruption.failure.message, style="yellow")
    if interruption.went_on:
        text.append(f"; {_WENT_ON.get(interruption.went_on, interruption.went_on)}")
        if interruption.recopied_bytes:
            text.append(f", {words.size(interruption.recopied_bytes)} were copied again")
    elif job.state == pb.JOB_STATE_WAITING and interruption == job.interruptions[-1]:
        text.append(f"; the next try is at {words.clock(interruption.next_try_time)}, or when it can be")
    return text


def _waiting(job: pb.Job) -> str:
    return f"waiting: {job.interruptions[-1].failure.message}" if job.interruptions else "waiting"


def _more_because(job: pb.Job) -> dict[tuple[str, str], list[str]]:
    """Labels of the disks of which more was read than what changed, by mode and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for disk in job.disks:
        if disk.state != pb.DISK_STATE_SKIPPED and disk.mode_reason:
            found.setdefault((disk.mode, disk.mode_reason), []).append(disk.label)
    return found


def disks(job: pb.Job) -> Table:
    """The disks of a job, a line each: 80 columns, for that is what terminals have."""
    rows = []
    for disk in job.disks:
        known = [str(disk.key), disk.label, words.size(disk.capacity_bytes)]
        if disk.state == pb.DISK_STATE_SKIPPED:
            rows.append([*known, "skipped", "", "", "", ""])
            continue
        rows.append([
            *known, _SHORT_MODES.get(disk.mode, disk.mode), words.size(disk.read_bytes),
            words.size(disk.copied_bytes), words.size(disk.wire_bytes),
            words.rate(disk.read_bytes, disk.seconds),
        ])  # fmt: skip
    columns = ["KEY", "DISK", "CAPACITY", "MODE", "READ", "COPIED", "ON WIRE", "MiB/s"]
    return table(columns, rows, right=["CAPACITY", "READ", "COPIED", "ON WIRE", "MiB/s"])
