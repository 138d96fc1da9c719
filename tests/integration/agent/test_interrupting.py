# SPDX-License-Identifier: Apache-2.0
"""Interrupted jobs at the agent: what is said of them, who may end them, and when nobody is there to ask."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.agent.kit import WITHIN_S, Agent, Puppet, Stream, open_stream, start
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

RESUME = pb.ResumeFrom(snapshot_moref="snapshot-1")
LOST = {"reason": "REASON_TUNNEL_LOST", "message": "cut"}


async def copying(agent: Agent, stub: AgentServiceStub, begin: pb.BackupStart) -> tuple[Stream, Puppet]:
    """A job to whose worker the hub has given exports."""
    stream = await open_stream(stub, begin)
    worker = await agent.puppets.next()
    await worker.hear("start")
    await worker.enter(pb.AGENT_PHASE_SNAPSHOT)
    await stream.event()
    await stream.tell(exports=pb.OpenExports())
    await worker.hear("exports")
    return stream, worker


async def interrupted(stream: Stream) -> pb.BackupInterrupted:
    event = await stream.event()
    assert event.HasField("interrupted"), event
    return event.interrupted


async def test_an_interruption_ends_nothing_and_is_heard_again_after_a_rejoin(agent: Agent):
    begin = start()
    async with agent.stub() as stub:
        first, worker = await copying(agent, stub, begin)
        await worker.say(interrupted=pb.BackupInterrupted(failure=LOST))  # type: ignore[arg-type]
        assert (await interrupted(first)).failure.reason == Reason.REASON_TUNNEL_LOST
        first.cut()
        second = await open_stream(stub, start(begin.job_id, after_seq=1))
        await interrupted(second)
        await second.tell(cancel=pb.CancelBackup(cause="enough"))
        assert not (await worker.hear("cancel")).cancel.keep_snapshot
        await worker.fail_as_cancelled()
        assert (await second.last()).failed.failure.reason == Reason.REASON_CANCELLED


@pytest.mark.parametrize("how", ["cancel", "dead_snapshots", "higher attempt"])
async def test_an_interrupted_job_whose_worker_is_gone_ends_with_a_snapshot_that_may_be_left(
    agent: Agent, how: str
):
    begin = start()
    async with agent.stub() as stub:
        stream, worker = await copying(agent, stub, begin)
        worker.kill()
        assert (await interrupted(stream)).failure.reason == Reason.REASON_COPY_PROCESS_DIED
        await worker.wait_gone()
        if how == "cancel":
            await stream.tell(cancel=pb.CancelBackup(cause="enough"))
        elif how == "dead_snapshots":
            dead = pb.JobSnapshot(job_id=begin.job_id, vm_instance_uuid=begin.vm_instance_uuid)
            await open_stream(stub, start(dead_snapshots=[dead]))  # and the VM is not busy
            await (await agent.puppets.next()).hear("start")
        else:
            await open_stream(stub, start(begin.job_id, attempt=2, resume=RESUME))
            await (await agent.puppets.next()).hear("start")
        failed = (await stream.last()).failed
    fenced = how == "higher attempt"
    assert failed.failure.reason == (Reason.REASON_ATTEMPT_FENCED if fenced else Reason.REASON_CANCELLED)
    assert failed.snapshot_left


@pytest.mark.parametrize("resume", [None, RESUME], ids=["anew", "resume"])
async def test_a_higher_attempt_has_the_old_one_leave_its_snapshot_only_if_it_goes_on_with_it(
    agent: Agent, resume: pb.ResumeFrom | None
):
    begin = start()
    async with agent.stub() as stub:
        old, worker = await copying(agent, stub, begin)
        new = await open_stream(stub, start(begin.job_id, attempt=2, resume=resume))
        assert (await worker.hear("cancel")).cancel.keep_snapshot == (resume is not None)
        if resume is not None:
            failure = {"reason": "REASON_CANCELLED", "message": "told to"}
            await worker.say(interrupted=pb.BackupInterrupted(failure=failure))  # type: ignore[arg-type]
            worker.end()
        else:
            await worker.fail_as_cancelled()
        events = await old.rest()
        assert events[-1].failed.failure.reason == Reason.REASON_ATTEMPT_FENCED
        assert events[-1].failed.snapshot_left == (resume is not None)
        worker = await agent.puppets.next()
        await worker.hear("start")
        await worker.enter(pb.AGENT_PHASE_LOGIN)
        assert (await new.event()).seq == 1


async def test_an_agent_that_stops_has_copies_leave_their_snapshot_and_says_so(agent: Agent):
    async with agent.stub() as stub:
        stream, worker = await copying(agent, stub, start())
        other_stream = await open_stream(stub, start(vm_instance_uuid="another"))
        other = await agent.puppets.next()
        await other.hear("start")
        stopping = asyncio.create_task(agent.jobs.stop())
        assert (await worker.hear("cancel")).cancel.keep_snapshot
        assert not (await other.hear("cancel")).cancel.keep_snapshot  # nothing is copied yet
        await worker.say(checkpoint=pb.Checkpoint(disk_key=2000))
        failure = {"reason": "REASON_CANCELLED", "message": "told to"}
        await worker.say(interrupted=pb.BackupInterrupted(failure=failure))  # type: ignore[arg-type]
        worker.end()
        await other.fail_as_cancelled()
        await asyncio.wait_for(stopping, WITHIN_S)
        assert (await stream.event()).HasField("checkpoint")
        assert (await interrupted(stream)).failure.reason == Reason.REASON_SERVICE_STOPPING
        assert (await other_stream.last()).failed.failure.reason == Reason.REASON_SERVICE_STOPPING
        await asyncio.wait_for(agent.jobs.drained(), WITHIN_S)


async def test_an_agent_that_stops_keeps_the_snapshot_of_a_resumed_attempt_that_copies_nothing_yet(
    agent: Agent,
):
    async with agent.stub() as stub:
        stream = await open_stream(stub, start(attempt=2, resume=RESUME))
        worker = await agent.puppets.next()
        await worker.hear("start")
        await worker.enter(pb.AGENT_PHASE_LOGIN)
        await stream.event()
        stopping = asyncio.create_task(agent.jobs.stop())
        assert (await worker.hear("cancel")).cancel.keep_snapshot
        failure = {"reason": "REASON_CANCELLED", "message": "told to"}
        await worker.say(interrupted=pb.BackupInterrupted(failure=failure))  # type: ignore[arg-type]
        worker.end()
        await asyncio.wait_for(stopping, WITHIN_S)
        assert (await interrupted(stream)).failure.reason == Reason.REASON_SERVICE_STOPPING
        (job,) = agent.jobs._jobs.values()
        assert job.snapshot_left


async def test_a_defect_of_the_worker_is_no_interruption(agent: Agent):
    async with agent.stub() as stub:
        stream, worker = await copying(agent, stub, start())
        await worker.say_message(SendenseError(Reason.REASON_INTERNAL, "a defect").to_failure())
        failed = (await stream.last()).failed
    assert failed.failure.reason == Reason.REASON_INTERNAL
    assert failed.snapshot_left


async def test_a_worker_that_dies_after_the_commit_fails_as_ever(agent: Agent):
    async with agent.stub() as stub:
        stream, worker = await copying(agent, stub, start())
        await stream.tell(committed=pb.CommitPoint(point_id="p"))
        await worker.hear("committed")
        worker.kill()
        assert (await stream.last()).failed.failure.reason == Reason.REASON_COPY_PROCESS_DIED


async def test_without_an_orphan_timeout_a_job_waits_for_its_hub(agent: Agent):
    begin = start(orphan_timeout=None)
    async with agent.stub() as stub:
        stream, worker = await copying(agent, stub, begin)
        stream.cut()
        job = agent.jobs._jobs[begin.job_id]
        await until(lambda: job._streams == 0, "the agent knows that it is alone")
        assert job._orphaned is None
        again = await open_stream(stub, start(begin.job_id, after_seq=1))
        await worker.say(done=pb.BackupDone(snapshot_removed=True))
        assert (await again.last()).HasField("done")
        worker.end()
