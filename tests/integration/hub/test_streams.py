# SPDX-License-Identifier: Apache-2.0
"""A connection that closes in the middle of RunBackup never leaves a job without a runner."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tests.integration.hub.kit import Hub, until
from tests.integration.hub.scripted_agent import MIB, ScriptedJob, backup, plan_of
from tests.integration.hub.test_backups import FIRST, digests, fails, sha256
from tests.integration.repository.kit import noise

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.clients import backup_stream
from sendense_hub.jobs import backup as backup_job

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejoins come at once."""
    monkeypatch.setattr(backup_stream, "_PAUSE_S", 0.02)


@pytest.fixture
def gives_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that cannot be reached is given up within a second."""
    monkeypatch.setattr(backup_job, "_SILENT_S", 0.8)
    monkeypatch.setattr(backup_job, "_DISMISS_WITHIN_S", 0.4)


@pytest.mark.parametrize(
    "status", [None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN]
)
async def test_a_stream_that_closes_anywhere_is_joined_again_and_nothing_is_lost(
    hub: Hub, status: grpc.StatusCode | None
):
    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_LOGIN)
        await job.drop(status)
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.drop(status)
        await job.copy(export, {0: FIRST[2000][0]}, done=False)
        await job.drop(status)
        await job.copy(export, {3 * MIB: noise(9, 512)})
        await job.drop(status)
        await job.say(copied=agent.DisksCopied())
        await job.hear("committed")
        await job.drop(status)
        await job.say(done=agent.BackupDone(snapshot_removed=True))

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert len(hub.agent.starts) == 6
    assert {start.attempt for start in hub.agent.starts} == {1}
    after = [start.after_seq for start in hub.agent.starts]
    assert after == sorted(after)
    assert after[0] == 0 < after[1]
    (point,) = await hub.points()
    assert await digests(hub, point.point_id) == {2000: sha256({0: FIRST[2000][0], 3 * MIB: noise(9, 512)})}
    assert hub.agent.job.count("exports") >= 3, "said again after each rejoin"


async def test_exports_are_said_after_a_rejoin_when_the_stream_broke_before(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.say(plan=plan_of())
        await job.drop(None)  # the hub is busy with layers, or has just said it: either way it must arrive
        export = (await job.hear("exports")).exports[0]
        await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert len(await hub.rows()) == 1


async def test_a_stream_that_keeps_back_what_the_agent_says_is_opened_anew(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    """Though its connection is alive: nothing breaks that the hub could notice."""
    monkeypatch.setattr(backup_stream, "_QUIET_S", 0.5)

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.is_stored()
        job.stall()
        await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert len(hub.agent.starts) > 1
    assert {start.attempt for start in hub.agent.starts} == {1}
    assert not job.interruptions


@pytest.mark.usefixtures("gives_up_soon")
async def test_an_agent_that_has_nothing_to_say_for_long_is_not_given_up(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backup_stream, "_QUIET_S", 0.1)

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await until(lambda: len(hub.agent.starts) > 20, "it was opened anew again and again")
        await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure


async def test_an_agent_that_is_killed_and_comes_back_without_the_job_ends_it(hub: Hub):
    copied = asyncio.Event()

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000], done=False)
        copied.set()
        await asyncio.Event().wait()

    hub.agent.script = script
    job, task = await hub.begin()
    await copied.wait()
    forgotten = hub.agent.jobs.pop(job.job_id)
    await forgotten.drop(grpc.StatusCode.UNAVAILABLE)
    async with asyncio.timeout(40):
        await task
    ended = await hub.job(job.job_id)
    assert (ended.state, ended.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_JOB_LOST)
    assert hub.agent.cleaned == [job.job_id], "its snapshot may be left"
    await hub.assert_nothing_left()


@pytest.mark.usefixtures("gives_up_soon")
@pytest.mark.parametrize("status", [None, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_ff08_a_stream_that_never_holds_ends_the_job_as_failed(
    hub: Hub, status: grpc.StatusCode | None
):
    async def script(job: ScriptedJob) -> None:
        await job.snapshot_and_plan(plan_of())
        while True:
            await job.drop(status)

    hub.agent.script = script
    job = await fails(hub, Reason.REASON_TUNNEL_LOST)
    assert hub.agent.cleaned == [job.job_id]
    assert len(hub.agent.starts) > 2


@pytest.mark.usefixtures("gives_up_soon")
async def test_a_site_that_goes_offline_in_the_copy_ends_the_job_and_its_clean_up_is_remembered(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000], done=False)
        hub.world.agent_socket.rename(hub.world.agent_socket.with_name("offline"))
        await job.drop(grpc.StatusCode.UNAVAILABLE)

    hub.agent.script = script
    job = await fails(hub, Reason.REASON_TUNNEL_LOST)
    assert [warning.code for warning in job.warnings] == ["snapshot_left"]


async def test_a_site_that_is_offline_has_no_snapshot_to_warn_of(hub: Hub):
    hub.world.agent_socket.rename(hub.world.agent_socket.with_name("offline"))
    job = await fails(hub, Reason.REASON_SITE_OFFLINE)
    assert list(job.warnings) == []


@pytest.mark.parametrize(
    "reason",
    [
        Reason.REASON_ATTEMPT_FENCED,
        Reason.REASON_VM_BUSY,
        Reason.REASON_INTERNAL,
        Reason.REASON_POINT_CORRUPT,
    ],
)
async def test_what_the_agent_refuses_is_not_asked_for_ever(hub: Hub, reason: Reason.ValueType):
    hub.agent.refusal = SendenseError(reason, "refused")
    job = await fails(hub, reason)
    assert job.failure.message == "refused"
    # Now and then gRPC tells a refusal that comes at once as a broken stream, and it is asked again.
    assert len(hub.agent.starts) <= 5


async def test_a_call_that_is_cancelled_from_below_fails_the_job_and_not_its_runner(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    async def read(stream: object) -> object:
        raise asyncio.CancelledError

    monkeypatch.setattr(backup_stream, "_read", read)
    monkeypatch.setattr(backup_job, "_DISMISS_WITHIN_S", 0.2)
    job = await fails(hub, Reason.REASON_TUNNEL_LOST)
    assert job.state == pb.JOB_STATE_FAILED


async def test_a_quiet_stream_that_breaks_late_is_joined_again(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """Removing a snapshot can take hours without an event."""
    monkeypatch.setattr(backup_job, "_SILENT_S", 0.2)
    monkeypatch.setattr(backup_stream, "_PROVED_ALIVE_S", 0.3)

    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await asyncio.sleep(0.6)  # longer than the hub waits for an agent that is gone
        await job.drop(grpc.StatusCode.UNAVAILABLE)
        await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure


async def test_a_repeated_checkpoint_or_plan_counts_once(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        (export,) = await job.snapshot_and_plan(plan_of())
        await job.copy(export, FIRST[2000])
        for event in job.events[2:]:  # an agent that repeats what the hub has stored
            if event.seq:
                kind = event.WhichOneof("event") or ""
                await job.say(seq=event.seq, **{kind: getattr(event, kind)})
        numbered = max(event.seq for event in job.events)
        await job.say(seq=numbered + 1, copied=agent.DisksCopied())
        await job.hear("committed")
        await job.say(seq=numbered + 2, done=agent.BackupDone(snapshot_removed=True))

    hub.agent.script = script
    once = await hub.run()
    assert once.state == pb.JOB_STATE_SUCCEEDED, once.failure
    (point,) = await hub.points()
    hub.agent.script = backup(FIRST, plan_of())
    await hub.run(pb.BACKUP_MODE_FULL)
    newest = (await hub.points())[0]
    sizes = [hub.repository.read_document(each.directory).disks[0].ledger_bytes for each in (point, newest)]
    assert sizes[0] == sizes[1]
