# SPDX-License-Identifier: Apache-2.0
"""Who may start, join or end a job: attempts, VMs, cancels, and jobs that the hub says are over."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from tests.integration.agent.kit import WITHIN_S, Agent, Puppet, Stream, open_stream, start
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.worker.channel import unpack
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

DONE = pb.BackupDone(snapshot_removed=True)


async def refusal(stream: Stream) -> SendenseError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stream.event()
    return SendenseError.from_rpc(refused.value)


async def begun(agent: Agent, stub: AgentServiceStub, begin: pb.BackupStart) -> tuple[Stream, Puppet]:
    """A job whose worker runs and has entered its first phase."""
    stream = await open_stream(stub, begin)
    worker = await agent.puppets.next()
    assert (await worker.hear("start")).start.attempt == begin.attempt
    await worker.enter(pb.AGENT_PHASE_LOGIN)
    assert (await stream.event()).phase.phase == pb.AGENT_PHASE_LOGIN
    return stream, worker


async def test_a_lower_attempt_is_refused_and_the_job_goes_on(agent: Agent):
    begin = start(attempt=3)
    async with agent.stub() as stub:
        stream, worker = await begun(agent, stub, begin)
        for after_seq in (0, 1):
            lower = start(begin.job_id, attempt=2, after_seq=after_seq)
            error = await refusal(await open_stream(stub, lower))
            assert error.reason == Reason.REASON_ATTEMPT_FENCED
            assert not error.retryable
        await worker.say(done=DONE)
        assert len(await stream.rest()) == 1
        worker.end()
    assert agent.puppets.started_count == 1


async def test_a_higher_attempt_ends_the_old_one_before_its_own_worker_starts(agent: Agent):
    begin = start(attempt=1)
    async with agent.stub() as stub:
        old, old_worker = await begun(agent, stub, begin)
        new = await open_stream(stub, start(begin.job_id, attempt=2))
        assert "attempt 2 is here" in (await old_worker.hear("cancel")).cancel.cause
        await asyncio.sleep(0.1)
        assert agent.puppets.started_count == 1  # one worker per VM, ever
        await old_worker.fail_as_cancelled(snapshot_left=True)
        ended = (await old.last()).failed
        assert ended.failure.reason == Reason.REASON_ATTEMPT_FENCED
        assert ended.snapshot_left
        new_worker = await agent.puppets.next()
        assert (await new_worker.hear("start")).start.attempt == 2
        await new_worker.enter(pb.AGENT_PHASE_LOGIN)
        assert (await new.event()).seq == 1
        error = await refusal(await open_stream(stub, begin))
        assert error.reason == Reason.REASON_ATTEMPT_FENCED
        new_worker.end()


async def test_a_stream_of_a_lower_attempt_can_do_nothing_after_a_takeover(agent: Agent):
    """Another hub goes on with the job: the first one's stream neither hears nor tells any more."""
    begin = start(attempt=1)
    async with agent.stub() as stub:
        old, worker = await begun(agent, stub, begin)
        new = await open_stream(stub, start(begin.job_id, attempt=2, after_seq=1))
        job = agent.jobs._jobs[begin.job_id]
        await until(lambda: job.attempt == 2, "the takeover")
        await old.tell(cancel=pb.CancelBackup(cause="too late"))
        await new.tell(limit=pb.LimitRate(bytes_per_second=1))
        await worker.hear("limit")
        await worker.enter(pb.AGENT_PHASE_PREFLIGHT)
        assert (await refusal(old)).reason == Reason.REASON_ATTEMPT_FENCED
        assert (await new.event()).seq == 2
        await worker.say(done=DONE)
        assert [event.WhichOneof("event") for event in await new.rest()] == ["done"]
        worker.end()


async def test_of_three_attempts_at_once_the_highest_stays(agent: Agent):
    begin = start(attempt=1)
    async with agent.stub() as stub:
        first, worker = await begun(agent, stub, begin)
        third = await open_stream(stub, start(begin.job_id, attempt=3))
        second = await open_stream(stub, start(begin.job_id, attempt=2))
        await worker.hear("cancel")
        await worker.fail_as_cancelled()
        while True:  # attempt 2 may have had its turn before attempt 3
            worker = await agent.puppets.next()
            if (await worker.hear("start")).start.attempt == 3:
                break
            await worker.hear("cancel")
            await worker.fail_as_cancelled()
        await worker.say(done=DONE)
        assert [event.WhichOneof("event") for event in await third.rest()] == ["done"]
        assert (await first.last()).failed.failure.reason == Reason.REASON_ATTEMPT_FENCED
        worker.end()
        second.cut()
    assert list(agent.jobs.ids()) == []


async def test_a_job_that_is_not_here_any_more_is_lost_and_may_have_left_a_snapshot(agent: Agent):
    async with agent.stub() as stub:
        (failed,) = await (await open_stream(stub, start(after_seq=4))).rest()
    assert failed.seq == 5
    assert failed.failed.failure.reason == Reason.REASON_JOB_LOST
    assert failed.failed.snapshot_left
    assert agent.puppets.started_count == 0


async def test_who_asks_again_for_what_it_has_stored_loses_the_job_instead_of_a_part_of_it(agent: Agent):
    begin = start()
    async with agent.stub() as stub:
        stream, worker = await begun(agent, stub, begin)
        await stream.tell(ack=pb.AckEvents(seq=1))
        job = agent.jobs._jobs[begin.job_id]
        await until(lambda: not job.log.continues_after(0), "the ack arrived")
        again = await open_stream(stub, begin)
        await worker.hear("cancel")
        await worker.fail_as_cancelled()
        assert (await again.last()).failed.failure.reason == Reason.REASON_JOB_LOST
        assert (await stream.last()).failed.failure.reason == Reason.REASON_JOB_LOST


async def test_a_second_job_of_a_busy_vm_is_refused(agent: Agent):
    begin = start()
    async with agent.stub() as stub:
        stream, worker = await begun(agent, stub, begin)
        error = await refusal(await open_stream(stub, start()))
        assert error.reason == Reason.REASON_VM_BUSY
        assert begin.job_id in error.message
        assert error.retryable
        await worker.say(done=DONE)
        await stream.rest()
        worker.end()
        _, worker = await begun(agent, stub, start())  # and welcome when the first has ended
        worker.end()


async def test_rule_21_vms_of_two_vcenters_with_one_instance_uuid_are_two(agent: Agent):
    one = start()
    other = start(vcenter=VcenterAccess(name="vc2", host="127.0.0.1", port=443, ca_pem="x", lease_id="l"))
    assert one.vm_instance_uuid == other.vm_instance_uuid
    async with agent.stub() as stub:
        _, first = await begun(agent, stub, one)
        second_stream, second = await begun(agent, stub, other)
        await second_stream.tell(cancel=pb.CancelBackup(cause="only this one"))
        await second.hear("cancel")
        await second.fail_as_cancelled()
        await second_stream.last()
        assert agent.jobs.ids() == [one.job_id]
        first.end()


async def test_a_cancel_reaches_the_worker_and_comes_back_with_its_cause(agent: Agent):
    async with agent.stub() as stub:
        stream, worker = await begun(agent, stub, start())
        for _ in range(2):  # said again after a rejoin
            await stream.tell(cancel=pb.CancelBackup(cause="the operator's wish"))
        await worker.hear("cancel")
        await worker.fail_as_cancelled()
        failed = (await stream.last()).failed
        assert failed.failure.reason == Reason.REASON_CANCELLED
        assert "the operator's wish" in failed.failure.message
        assert failed.failure.metadata["vm"] == "web"
        await worker.wait_gone()


async def test_a_cancel_right_after_the_start_is_not_lost(agent: Agent):
    """It may come before the worker's process exists."""
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        await stream.tell(cancel=pb.CancelBackup(cause="at once"))
        worker = await agent.puppets.next()
        await worker.hear("start")
        assert (await worker.hear("cancel")).cancel.cause == "at once"
        await worker.fail_as_cancelled()
        assert (await stream.last()).failed.failure.reason == Reason.REASON_CANCELLED


@pytest.mark.parametrize("how", ["CleanUpSnapshots", "dead_snapshots of the next start"])
async def test_a_job_that_the_hub_says_is_over_ends_before_its_snapshot_is_removed(agent: Agent, how: str):
    begin = start()
    dead = pb.JobSnapshot(job_id=begin.job_id, vm_instance_uuid=begin.vm_instance_uuid)
    async with agent.stub() as stub:
        stream, worker = await begun(agent, stub, begin)
        if how == "CleanUpSnapshots":
            request = agent_service_pb2.CleanUpSnapshotsRequest(
                vcenter=begin.vcenter, hub_id="hub-1", snapshots=[dead]
            )
            cleaning = stub.CleanUpSnapshots(request, timeout=WITHIN_S)
            await worker.hear("cancel")
            await asyncio.sleep(0.1)
            assert agent.puppets.started_count == 1
            await worker.fail_as_cancelled()
            cleaner = await agent.puppets.next()
            asked = await cleaner.hear_any()
            assert asked is not None
            assert unpack(asked, agent_service_pb2.CleanUpSnapshotsRequest) == request
            await cleaner.say_message(
                agent_service_pb2.CleanUpSnapshotsResponse(cleaned_job_ids=[begin.job_id])
            )
            assert list((await cleaning).cleaned_job_ids) == [begin.job_id]
        else:
            await open_stream(stub, start(dead_snapshots=[dead]))
            await worker.hear("cancel")
            await worker.fail_as_cancelled()
            await (await agent.puppets.next()).hear("start")
        failed = (await stream.last()).failed.failure
        assert failed.reason == Reason.REASON_CANCELLED
        assert "the hub says that it is over" in failed.message
