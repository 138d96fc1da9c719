# SPDX-License-Identifier: Apache-2.0
"""The stream is not the job: it may break, come twice, or never say anything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.integration.agent.kit import Agent, Stream, open_stream, start
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration

DONE = pb.BackupDone(snapshot_removed=True)


@contextlib.asynccontextmanager
async def breakable(agent: Agent) -> AsyncIterator[tuple[Path, list[asyncio.StreamWriter]]]:
    """A way to the agent whose connections can be torn (`transport.abort`)."""
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(str(agent.socket))
        writers.extend((writer, to_writer))
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    path = agent.directory / "way.sock"
    server = await asyncio.start_unix_server(accept, str(path))
    try:
        yield path, writers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def test_a_connection_that_breaks_cancels_nothing_and_a_rejoin_hears_every_event_once(agent: Agent):
    begin = start()
    async with breakable(agent) as (way, writers), agent.stub() as direct:
        async with agent.stub(way) as stub:
            first = await open_stream(stub, begin)
            worker = await agent.puppets.next()
            await worker.hear("start")
            await worker.enter(pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT)
            heard = await first.events(2)
            await first.tell(ack=pb.AckEvents(seq=1))
            for writer in writers:
                writer.transport.abort()
            with pytest.raises(grpc.aio.AioRpcError):
                await first.event()
        await worker.enter(pb.AGENT_PHASE_SNAPSHOT, pb.AGENT_PHASE_PLAN)
        begin.after_seq = heard[-1].seq
        second = await open_stream(direct, begin)
        heard += await second.events(2)
        await second.tell(exports=pb.OpenExports())
        await worker.hear("exports")  # and nothing before it: no cancel
        await worker.say(done=DONE)
        heard.append(await second.event())
        assert await second.rest() == []
        worker.end()
    assert [event.seq for event in heard] == [1, 2, 3, 4, 5]
    assert [event.phase.phase for event in heard[:4]] == [1, 2, 3, 4]
    assert agent.puppets.started_count == 1


async def test_events_that_were_not_stored_are_said_again_from_any_number(agent: Agent):
    begin = start()
    async with agent.stub() as stub:
        first = await open_stream(stub, begin)
        worker = await agent.puppets.next()
        await worker.enter(pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT, pb.AGENT_PHASE_SNAPSHOT)
        await first.events(3)
        await first.tell(ack=pb.AckEvents(seq=1))
        await until(lambda: not agent.jobs._jobs[begin.job_id].log.continues_after(0), "the ack arrived")
        for after in (1, 2, 3):
            begin.after_seq = after
            again = await open_stream(stub, begin)
            assert [event.seq for event in await again.events(3 - after)] == list(range(after + 1, 4))
            again.cut()
        worker.end()


async def test_two_streams_of_one_job_hear_the_same_and_it_runs_once(agent: Agent):
    begin = start()
    async with agent.stub() as stub:
        streams = [await open_stream(stub, begin) for _ in range(2)]
        worker = await agent.puppets.next()
        await worker.hear("start")
        await worker.enter(pb.AGENT_PHASE_LOGIN)
        for stream in streams:
            assert (await stream.event()).seq == 1
        streams[0].cut()
        await streams[1].tell(limit=pb.LimitRate(bytes_per_second=5))
        assert (await worker.hear("limit")).limit.bytes_per_second == 5
        await worker.say(done=DONE)
        assert [event.WhichOneof("event") for event in await streams[1].rest()] == ["done"]
        worker.end()
    assert agent.puppets.started_count == 1


async def test_progress_is_told_as_it_comes_and_never_again(agent: Agent):
    begin = start()
    disk = pb.DiskProgress(disk_key=2000, read_bytes=9)
    async with agent.stub() as stub:
        first = await open_stream(stub, begin)
        worker = await agent.puppets.next()
        await worker.enter(pb.AGENT_PHASE_COPY)
        assert (await first.event()).seq == 1
        await worker.say(progress=pb.BackupProgress(disks=[disk]))
        told = await first.event()
        assert told.seq == 0
        assert list(told.progress.disks) == [disk]
        first.cut()
        second = await open_stream(stub, begin)
        await worker.say(done=DONE)
        assert [event.WhichOneof("event") for event in await second.rest()] == ["phase", "done"]
        worker.end()


async def test_a_job_without_any_stream_cleans_up_after_its_time(agent: Agent):
    begin = start(orphan_timeout=Duration(nanos=200_000_000))
    async with agent.stub() as stub:
        stream = await open_stream(stub, begin)
        worker = await agent.puppets.next()
        await worker.hear("start")
        await worker.enter(pb.AGENT_PHASE_SNAPSHOT)
        assert (await stream.event()).seq == 1
        stream.cut()
        assert "without a hub" in (await worker.hear("cancel")).cancel.cause
        await worker.fail_as_cancelled()
        await worker.wait_gone()
        begin.after_seq = 1
        (failed,) = await (await open_stream(stub, begin)).rest()
    assert failed.seq == 2
    assert failed.failed.failure.reason == Reason.REASON_JOB_LOST
    assert not failed.failed.snapshot_left


async def test_a_rejoin_in_time_keeps_the_job(agent: Agent):
    begin = start(orphan_timeout=Duration(seconds=4))
    async with agent.stub() as stub:
        first = await open_stream(stub, begin)
        worker = await agent.puppets.next()
        await worker.hear("start")
        await worker.enter(pb.AGENT_PHASE_LOGIN)
        await first.event()
        first.cut()
        job = agent.jobs._jobs[begin.job_id]
        await until(lambda: job._orphaned is not None, "the agent knows that it is alone")
        begin.after_seq = 1
        second = await open_stream(stub, begin)
        await until(lambda: job._orphaned is None, "and that it is not any more")
        await asyncio.sleep(4.2)  # longer than its time
        await second.tell(limit=pb.LimitRate(bytes_per_second=1))
        await worker.hear("limit")  # and no cancel before it
        worker.end()


async def test_a_hub_that_stopped_reading_and_then_went_leaves_an_orphan_too(agent: Agent):
    """The agent is in the middle of a write when the connection breaks."""
    begin = start(orphan_timeout=Duration(nanos=200_000_000))
    records = [pb.LedgerRecord(offset_bytes=n, length_bytes=1, sha256=b"x" * 32) for n in range(10_000)]
    async with breakable(agent) as (way, writers), agent.stub(way) as stub:
        await open_stream(stub, begin)  # and nobody reads
        worker = await agent.puppets.next()
        await worker.hear("start")
        for _ in range(40):
            await worker.say(checkpoint=pb.Checkpoint(disk_key=2000, records=records))
        job = agent.jobs._jobs[begin.job_id]
        await until(lambda: job.log._last == 40, "all was said", within_s=20)
        assert job._streams == 1
        for writer in writers:
            writer.transport.abort()
        await worker.hear("cancel")
        await worker.fail_as_cancelled()
        await worker.wait_gone()


async def test_a_client_that_says_nothing_hinders_nobody(agent: Agent):
    async with agent.stub() as stub:
        silent = await open_stream(stub, None)
        stream = await open_stream(stub, start())
        worker = await agent.puppets.next()
        await worker.say(done=DONE)
        assert len(await stream.rest()) == 1
        worker.end()
        assert list((await stub.GetAgent(agent_service_pb2.GetAgentRequest(), timeout=10)).job_ids) == []
        silent.cut()
        assert await silent.status() == grpc.StatusCode.CANCELLED
        await _ended_without_start(stub)


async def _ended_without_start(stub: AgentServiceStub) -> None:
    call = stub.RunBackup()
    await call.done_writing()
    assert await Stream(call).status() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "message",
    [
        {"ack": pb.AckEvents(seq=1)},
        {"cancel": pb.CancelBackup()},
        {"exports": pb.OpenExports()},
        {},
    ],
)
async def test_the_first_message_must_be_start(agent: Agent, message: dict[str, Any]):
    async with agent.stub() as stub:
        stream = await open_stream(stub, None)
        await stream.tell(**message)
        with pytest.raises(grpc.aio.AioRpcError, match="must be `start`") as refused:
            await stream.event()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert agent.puppets.started_count == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job_id", ""),
        ("job_id", "../../etc"),
        ("hub_id", ""),
        ("vm_instance_uuid", ""),
        ("vcenter", None),
        ("attempt", 0),
        ("attempt", -1),
        ("after_seq", -1),
        ("quiesce", pb.QUIESCE_MODE_UNSPECIFIED),
        ("quiesce", 17),
        ("orphan_timeout", Duration(seconds=-5)),
        ("orphan_timeout", Duration(seconds=10**15)),
    ],
)
async def test_a_malformed_start_names_the_field_and_starts_nothing(agent: Agent, field: str, value: object):
    changes: dict[str, Any] = {} if field == "job_id" else {field: value}
    begin = start(**changes)
    if field == "job_id":
        begin.job_id = str(value)
    async with agent.stub() as stub:
        stream = await open_stream(stub, begin)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.event()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    error = SendenseError.from_rpc(refused.value)
    assert error.reason == Reason.REASON_INVALID_REQUEST
    assert error.metadata["field"] == f"start.{field}"
    assert agent.puppets.started_count == 0
