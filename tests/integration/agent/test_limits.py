# SPDX-License-Identifier: Apache-2.0
"""Limits over all jobs of an agent: real workers, several at once, and workers that die."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import WITHIN_S, Agent, Puppet, open_stream, running_agent, start
from tests.integration.agent.site_kit import MIB, Backup, Site, running_site
from tests.integration.credentials.kit import Service
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.agent.v1 import permits_pb2
from sendense.agent.v1.permits_pb2 import PERMIT_KIND_DATASTORE_SNAPSHOT, PERMIT_KIND_HOST_READ
from sendense_agent.domain.limits import Limits
from sendense_agent.worker.channel import unpack
from sendense_lab.client import LabClient, LabMachine

pytestmark = pytest.mark.integration

ONE_OF_EACH = Limits(reads_per_host=1, snapshots_per_datastore=1)


@pytest.fixture
async def narrow(short_tmp: Path, credentials: Service, lab: LabClient) -> AsyncIterator[Site]:
    """A site with room for one snapshot and one reader."""
    async with running_site(short_tmp, credentials, lab, ONE_OF_EACH) as serving:
        yield serving


async def machine(site: Site, *sizes: int) -> LabMachine:
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", list(sizes))
    for number, key in enumerate(vm.disks):
        await site.lab.guest_write(vm.name, key, 0, bytes([number + 1]) * MIB)
    return vm


def warnings(events: list[pb.RunBackupResponse]) -> list[tuple[str, str]]:
    return [(event.warning.code, event.warning.message) for event in events if event.HasField("warning")]


async def test_rule_19_jobs_wait_for_their_turn_on_a_datastore_say_so_and_all_succeed(narrow: Site):
    vms = [await machine(narrow, 2 * MIB) for _ in range(3)]
    backups = [await narrow.begin(vm) for vm in vms]
    at_once: list[int] = []

    async def watch() -> None:
        while True:
            at_once.append(sum([len(await narrow.snapshots(vm)) for vm in vms]))
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    results = await asyncio.gather(*(backup.to_the_end() for backup in backups))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert max(at_once) == 1
    told = [warnings(events) for _, events in results]
    waited = [each for each in told if each]
    assert len(waited) == 2
    for each in waited:
        ((code, words),) = each
        assert code == "waited_for_datastore"
        assert "datastore1" in words
    assert all(events[-1].done.snapshot_removed for _, events in results)
    assert narrow.agent.jobs.permits.counts() == {}
    for vm in vms:
        await narrow.nothing_left(vm)


async def test_rule_19_disks_of_one_host_are_read_one_after_another(narrow: Site):
    vm = await machine(narrow, 2 * MIB, 2 * MIB, 2 * MIB)
    backup = await narrow.begin(vm)
    _, events = await backup.to_the_end()
    order = [
        (event.disk_done.progress.disk_key, "done") if event.HasField("disk_done")
        else (event.checkpoint.disk_key, "data")
        for event in events
        if event.HasField("disk_done") or event.HasField("checkpoint")
    ]  # fmt: skip
    finished: set[int] = set()
    begun: set[int] = set()
    for key, what in order:
        begun.add(key)
        assert len(begun - finished) <= 1, f"two disks were read at once: {order}"
        if what == "done":
            finished.add(key)
    assert finished == set(vm.disks)
    assert [code for code, _ in warnings(events)] == ["waited_for_host"]
    assert await backup.stored() == {key: bytes([n + 1]) * MIB + bytes(MIB) for n, key in enumerate(vm.disks)}
    await narrow.nothing_left(vm)


async def test_a_job_that_waits_can_be_cancelled_and_has_made_nothing(narrow: Site):
    first, second = [await machine(narrow, 2 * MIB) for _ in range(2)]
    holding = await narrow.begin(first)
    await holding.until_plan()
    waiting = await narrow.begin(second)
    await waiting.until(lambda event: event.HasField("warning"))
    await waiting.cancel()
    failed = await waiting.failed()
    assert not failed.snapshot_left
    phases = [event.phase.phase for event in waiting.heard if event.HasField("phase")]
    assert phases == [pb.AGENT_PHASE_LOGIN, pb.AGENT_PHASE_PREFLIGHT]
    third = await narrow.begin(second)
    await third.until(lambda event: event.HasField("warning"))
    await holding.cancel()
    await holding.failed()
    await third.to_the_end()
    await narrow.nothing_left(second)


async def test_a_worker_that_is_killed_gives_its_permits_back(narrow: Site):
    first, second = [await machine(narrow, 2 * MIB) for _ in range(2)]
    holding = await narrow.begin(first)
    await holding.until_plan()
    waiting: Backup = await narrow.begin(second)
    await waiting.until(lambda event: event.HasField("warning"))
    os.kill(holding.worker_pid, signal.SIGKILL)
    await holding.failed()
    await waiting.to_the_end()
    assert narrow.agent.jobs.permits.counts() == {}


async def answer(puppet: Puppet) -> permits_pb2.PermitAnswer:
    wrapped = await puppet.hear_any()
    assert wrapped is not None
    found = unpack(wrapped, permits_pb2.PermitAnswer)
    assert found is not None
    return found


async def ask(
    puppet: Puppet, kind: permits_pb2.PermitKind.ValueType, *places: str
) -> permits_pb2.PermitAnswer:
    """What is answered at once."""
    request = permits_pb2.PermitRequest(
        permit_id=f"{kind}-{places}", kind=kind, places={each: each for each in places}
    )
    await puppet.say_message(request)
    return await answer(puppet)


async def test_rule_19_crossing_wishes_of_jobs_do_not_block_each_other(short_tmp: Path):
    async with running_agent(short_tmp, limits=ONE_OF_EACH) as agent, agent.stub() as stub:
        puppets = []
        for number in range(2):
            uuid_ = f"50000000-0000-0000-0000-00000000000{number}"
            stream = await open_stream(stub, start(vm_instance_uuid=uuid_))
            puppets.append((await agent.puppets.next(), stream))
            await puppets[-1][0].hear("start")
        (one, stream_one), (two, _) = puppets
        assert (await ask(one, PERMIT_KIND_DATASTORE_SNAPSHOT, "ds1", "ds2")).granted
        refused = await ask(two, PERMIT_KIND_DATASTORE_SNAPSHOT, "ds2", "ds1")
        assert not refused.granted
        assert "ds2" in refused.waits_for
        assert (await ask(two, PERMIT_KIND_HOST_READ, "esx1")).granted
        assert not (await ask(one, PERMIT_KIND_HOST_READ, "esx1")).granted
        one.kill()
        await stream_one.last()
        again = await answer(two)
        assert again.granted
        assert again.permit_id == refused.permit_id
        two.kill()
        await until(lambda: agent.jobs.permits.counts() == {}, "all permits are back", WITHIN_S)


async def test_a_question_that_makes_no_sense_ends_nothing(agent: Agent):
    async with agent.stub() as stub:
        stream = await open_stream(stub, start())
        puppet = await agent.puppets.next()
        await puppet.hear("start")
        await puppet.say_message(permits_pb2.PermitRequest(permit_id="x"))
        await puppet.enter(pb.AGENT_PHASE_LOGIN)
        assert (await stream.event()).phase.phase == pb.AGENT_PHASE_LOGIN
        puppet.kill()
        await stream.last()
