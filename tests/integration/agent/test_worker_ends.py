# SPDX-License-Identifier: Apache-2.0
"""However a worker ends, its job ends, with the truth about the snapshot; and no process stays."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc
import pytest
from tests.integration.agent.kit import WITHIN_S, Agent, Puppets, open_stream, start

from sendense.agent.v1 import agent_service_pb2
from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.config import AgentConfig
from sendense_agent.control import job as job_module
from sendense_agent.control.serve import serve
from sendense_agent.datapath import framing
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.paths import AgentPaths

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("phases", "left"),
    [
        ([], False),
        ([pb.AGENT_PHASE_LOGIN], False),
        ([pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT], False),
        ([pb.AGENT_PHASE_PREFLIGHT, pb.AGENT_PHASE_SNAPSHOT], True),
        ([pb.AGENT_PHASE_SNAPSHOT, pb.AGENT_PHASE_PLAN], True),
        ([pb.AGENT_PHASE_SNAPSHOT, pb.AGENT_PHASE_COPY], True),
        ([pb.AGENT_PHASE_SNAPSHOT, pb.AGENT_PHASE_REMOVE_SNAPSHOT], True),
    ],
)
async def test_ff27_a_killed_worker_fails_the_job_and_says_whether_a_snapshot_may_be_left(
    agent: Agent, phases: list[pb.AgentPhase.ValueType], left: bool
):
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        worker = await agent.puppets.next()
        await worker.hear("start")
        await worker.enter(*phases)
        await stream.events(len(phases))
        worker.kill()
        (event,) = await stream.rest()
    assert event.seq == len(phases) + 1
    assert event.failed.failure.reason == Reason.REASON_COPY_PROCESS_DIED
    assert event.failed.failure.metadata["vm"] == "web"
    assert event.failed.snapshot_left == left
    await worker.wait_gone()
    assert agent.jobs.ids() == []


async def test_ff09_a_worker_that_ends_without_a_word_is_noticed(agent: Agent):
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        (await agent.puppets.next()).end()
        (event,) = await stream.rest()
    assert event.failed.failure.reason == Reason.REASON_COPY_PROCESS_DIED
    assert "without a word" in event.failed.failure.message


@pytest.mark.parametrize(
    "words",
    [b"\xff\xff\xff\x7f", framing._LENGTH.pack(3) + b"\xff\xff\xff", framing._LENGTH.pack(40) + b"cut"],
    ids=["too long", "not a message", "cut in the middle"],
)
async def test_a_worker_that_cannot_be_understood_fails_the_job(agent: Agent, words: bytes):
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        worker = await agent.puppets.next()
        await worker.enter(pb.AGENT_PHASE_SNAPSHOT)
        await worker.say_bytes(words)
        if words.endswith(b"cut"):
            worker.end()
        event = (await stream.rest())[-1]
    cut = words.endswith(b"cut")
    expected = Reason.REASON_COPY_PROCESS_DIED if cut else Reason.REASON_INTERNAL
    assert event.failed.failure.reason == expected
    assert event.failed.snapshot_left
    await worker.wait_gone()


async def test_a_failure_before_the_backup_began_is_told_as_its_event(agent: Agent):
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        worker = await agent.puppets.next()
        error = SendenseError(Reason.REASON_TOOL_MISSING, "no such thing", remedy="Install it.")
        await worker.say_message(error.to_failure())
        (event,) = await stream.rest()
        await worker.wait_gone()
    assert event.failed.failure.reason == Reason.REASON_TOOL_MISSING
    assert event.failed.failure.remedy == "Install it."
    assert not event.failed.snapshot_left


async def test_a_program_that_cannot_be_started_fails_the_job(agent: Agent):
    agent.jobs._command = lambda traceparent: ["/does/not/exist"]
    async with agent.stub() as stub:
        (event,) = await (await open_stream(stub, start())).rest()
    assert event.failed.failure.reason == Reason.REASON_INTERNAL
    assert "could not be started" in event.failed.failure.message


async def test_what_a_worker_says_after_its_last_word_is_not_told(agent: Agent):
    begin = start()
    async with agent.stub() as stub:
        stream = await open_stream(stub, begin)
        worker = await agent.puppets.next()
        await worker.say(done=pb.BackupDone(snapshot_removed=True))
        await worker.enter(pb.AGENT_PHASE_COPY)
        assert [event.WhichOneof("event") for event in await stream.rest()] == ["done"]
        job = agent.jobs._jobs[begin.job_id]
        assert not job.snapshot_left
        worker.kill()
        await asyncio.wait({job.running}, timeout=WITHIN_S)
        assert not job.snapshot_left
        assert job.log._last == 1


async def test_a_worker_that_does_not_end_after_its_last_word_is_ended(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job_module, "_EXIT_WITHIN_S", 0.1)
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        worker = await agent.puppets.next()
        await worker.say(done=pb.BackupDone(snapshot_removed=True))
        assert len(await stream.rest()) == 1
        await worker.wait_gone()


@pytest.mark.parametrize("call", ["TestVcenter", "CleanUpSnapshots", "ListVirtualMachines"])
async def test_short_operations_fail_with_the_workers_reason_or_its_death(agent: Agent, call: str):
    kinds = {
        "TestVcenter": agent_service_pb2.TestVcenterRequest,
        "CleanUpSnapshots": agent_service_pb2.CleanUpSnapshotsRequest,
        "ListVirtualMachines": agent_service_pb2.ListVirtualMachinesRequest,
    }

    async def ask(stub: AgentServiceStub) -> object:
        calling = getattr(stub, call)(kinds[call](), timeout=WITHIN_S)
        return [page async for page in calling] if call == "ListVirtualMachines" else await calling

    async with agent.stub() as stub:
        for death in (False, True):
            asking = asyncio.create_task(ask(stub))
            worker = await agent.puppets.next()
            await worker.hear_any()
            if death:
                worker.kill()
            else:
                told = SendenseError(Reason.REASON_VCENTER_LOGIN_FAILED, "wrong", vcenter="vc1")
                await worker.say_message(told.to_failure())
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await asking
            error = SendenseError.from_rpc(failed.value)
            expected = Reason.REASON_COPY_PROCESS_DIED if death else Reason.REASON_VCENTER_LOGIN_FAILED
            assert error.reason == expected
            await worker.wait_gone()


async def test_a_caller_that_hangs_up_ends_the_worker_of_its_short_operation(agent: Agent):
    async with grpc.aio.insecure_channel(f"unix:{agent.socket}") as channel:
        asking = AgentServiceStub(channel).TestVcenter(agent_service_pb2.TestVcenterRequest())
        worker = await agent.puppets.next()
        await worker.hear_any()
        asking.cancel()
        await worker.wait_gone()


# --- the agent itself stops ---


def configured(directory: Path) -> AgentPaths:
    """An agent whose hub cannot be reached."""
    paths = AgentPaths(directory / "state", directory / "run")
    paths.state.mkdir()
    host_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKBpqzYCIlIYH7VEzNQvYcKCkpTAyRw0iCmDLpQyNEdO hub"
    AgentConfig("site-a", "127.0.0.1", 9, host_key).save(paths)
    return paths


async def test_an_agent_that_is_stopped_has_its_workers_clean_up_and_tells_the_hub_why(short_tmp: Path):
    paths, puppets, stopping = configured(short_tmp), Puppets(short_tmp), asyncio.Event()
    async with puppets.listening():
        serving = asyncio.create_task(serve(paths, stopping, command=puppets.command))
        await rpc.wait_healthy(paths.grpc_socket, timeout_s=WITHIN_S, what="the agent")
        async with rpc.connect(paths.grpc_socket) as channel:
            stub = AgentServiceStub(channel)
            stream = await open_stream(stub, start())
            worker = await puppets.next()
            await worker.hear("start")
            await worker.enter(pb.AGENT_PHASE_SNAPSHOT)
            assert (await stream.event()).seq == 1
            stopping.set()
            await worker.hear("cancel")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await (await open_stream(stub, start(vm_instance_uuid="other"))).event()
            assert SendenseError.from_rpc(refused.value).reason == Reason.REASON_SERVICE_STOPPING
            assert not serving.done()  # it waits for the clean-up
            await worker.fail_as_cancelled()
            (event,) = await stream.rest()
        await asyncio.wait_for(serving, WITHIN_S)
    assert event.failed.failure.reason == Reason.REASON_SERVICE_STOPPING
    assert not event.failed.snapshot_left
    assert puppets.started_count == 1
    assert not paths.grpc_socket.exists()
    await worker.wait_gone()


async def test_an_agent_that_is_stopped_does_not_wait_for_ever_for_a_worker_that_hangs(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sendense_agent.control.jobs._STOP_WITHIN_S", 0.2)
    paths, puppets, stopping = configured(short_tmp), Puppets(short_tmp), asyncio.Event()
    async with puppets.listening():
        serving = asyncio.create_task(serve(paths, stopping, command=puppets.command))
        await rpc.wait_healthy(paths.grpc_socket, timeout_s=WITHIN_S, what="the agent")
        async with rpc.connect(paths.grpc_socket) as channel:
            stream = await open_stream(AgentServiceStub(channel), start())
            worker = await puppets.next()
            await worker.enter(pb.AGENT_PHASE_SNAPSHOT)
            assert (await stream.event()).seq == 1
            stopping.set()
            (event,) = await stream.rest()
        await asyncio.wait_for(serving, WITHIN_S)
    assert event.failed.failure.reason == Reason.REASON_SERVICE_STOPPING
    assert event.failed.snapshot_left
    await worker.wait_gone()


async def test_after_a_restart_the_agent_says_that_its_jobs_are_lost(short_tmp: Path):
    paths, puppets = configured(short_tmp), Puppets(short_tmp)
    begin = start()
    async with puppets.listening():
        for restarted in (False, True):
            stopping = asyncio.Event()
            serving = asyncio.create_task(serve(paths, stopping, command=puppets.command))
            await rpc.wait_healthy(paths.grpc_socket, timeout_s=WITHIN_S, what="the agent")
            async with rpc.connect(paths.grpc_socket) as channel:
                stream = await open_stream(AgentServiceStub(channel), begin)
                if restarted:
                    (event,) = await stream.rest()
                else:
                    worker = await puppets.next()
                    await worker.enter(pb.AGENT_PHASE_SNAPSHOT)
                    begin.after_seq = (await stream.event()).seq
                    stream.cut()
                    worker.kill()
                    await worker.wait_gone()
            stopping.set()
            await asyncio.wait_for(serving, WITHIN_S)
    assert event.seq == 2
    assert event.failed.failure.reason == Reason.REASON_JOB_LOST
    assert event.failed.snapshot_left
    assert puppets.started_count == 1


async def test_leftovers_of_a_killed_agent_are_gone_after_the_next_start(short_tmp: Path):
    paths, stopping = configured(short_tmp), asyncio.Event()
    for leftover in (paths.exports_dir, paths.run / "n"):
        leftover.mkdir(parents=True)
        (leftover / "old.sock").touch()
    serving = asyncio.create_task(serve(paths, stopping))
    await rpc.wait_healthy(paths.grpc_socket, timeout_s=WITHIN_S, what="the agent")
    assert not paths.exports_dir.exists()
    assert not (paths.run / "n").exists()
    with pytest.raises(SendenseError, match="another agent"):
        await serve(paths, asyncio.Event())
    stopping.set()
    await asyncio.wait_for(serving, WITHIN_S)


async def test_an_agent_process_without_configuration_says_what_to_do(short_tmp: Path):
    command = ["run", "--state", str(short_tmp / "state"), "--run", str(short_tmp / "run")]
    code, _, errors = await sendense_agent(*command)
    assert code == 1
    assert "`sendense agent invite SITE`" in errors


async def test_configure_prints_both_public_keys_and_refuses_what_is_not_a_hub(short_tmp: Path):
    state = ["--state", str(short_tmp / "state"), "--run", str(short_tmp / "run")]
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKBpqzYCIlIYH7VEzNQvYcKCkpTAyRw0iCmDLpQyNEdO hub"
    for hub in ("nowhere", ":22", "host:", "host:0", "host:65536"):
        code, _, errors = await sendense_agent(
            "configure", *state, "--site", "paris", "--hub", hub, "--hub-key", key
        )
        assert (code, "is not HOST:PORT" in errors) == (2, True), hub
    bad_key = ["--hub", "hub.example:22", "--hub-key", "ssh-ed25519 AAAA"]
    code, _, errors = await sendense_agent("configure", *state, "--site", "paris", *bad_key)
    assert code == 1
    assert "key" in errors
    assert not (short_tmp / "state" / "agent.json").exists()
    lines = []
    for _ in range(2):  # the keys stay
        good = ["--hub", "[::1]:8022", "--hub-key", key]
        code, output, errors = await sendense_agent("configure", *state, "--site", "paris", *good)
        assert code == 0, errors
        lines.append(output.splitlines())
    assert lines[0] == lines[1]
    assert [line.split()[0] for line in lines[0]] == ["ssh-ed25519", "sendense-agent-keys"]
    stored = json.loads((short_tmp / "state" / "agent.json").read_text())
    assert (stored["hub_host"], stored["hub_port"]) == ("::1", 8022)
    for file in (short_tmp / "state").glob("*key*"):
        assert file.suffix == ".pub" or file.stat().st_mode & 0o077 == 0


async def sendense_agent(*arguments: str) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sendense_agent.main",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode is not None
    return child.returncode, output.decode(), errors.decode()
