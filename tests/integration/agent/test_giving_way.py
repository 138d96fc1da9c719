# SPDX-License-Identifier: Apache-2.0
"""Snapshots that must not be made, and those that must go: full datastores, age, with nobody to ask."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.agent.kit import WITHIN_S, open_stream
from tests.integration.agent.resuming_kit import Job
from tests.integration.agent.site_kit import MIB, Backup, Site, children, running_site
from tests.integration.credentials.kit import Service
from tests.integration.tunnel.kit import until

from sendense.agent.v1 import backup_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.domain.limits import GIB, Limits
from sendense_common.errors import SendenseError
from sendense_lab.client import LabClient, LabMachine

pytestmark = pytest.mark.integration

ATTENTIVE = Limits(look_every_s=0.2)
STORE = "datastore1"


async def set_free(lab: LabClient, free_bytes: int) -> None:
    await lab.command("set_free_space", datastore=STORE, free_bytes=free_bytes)


@pytest.fixture
async def site(short_tmp: Path, credentials: Service, lab: LabClient) -> AsyncIterator[Site]:
    async with running_site(short_tmp, credentials, lab, ATTENTIVE) as serving:
        yield serving
    await set_free(lab, 1024 * GIB)


async def machine(site: Site) -> LabMachine:
    vm = await site.lab.add_vm(f"web-{uuid.uuid4().hex[:8]}", [4 * MIB])
    await site.lab.guest_write(vm.name, vm.disks[0], 0, b"x" * MIB)
    return vm


async def snapshot_goes(site: Site, vm: LabMachine) -> None:
    async with asyncio.timeout(WITHIN_S):
        while await site.snapshots(vm):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def end_heard_later(site: Site, backup: Backup) -> pb.BackupFailed:
    """What a hub hears that comes back when all is over."""
    heard = max(event.seq for event in backup.heard)
    again = pb.BackupStart()
    again.CopyFrom(backup.start)
    again.after_seq = heard
    stream = await open_stream(site.stub, again)
    backup.heard += await stream.rest()
    return backup.heard[-1].failed


async def test_rule_17_below_the_floor_no_snapshot_is_made(site: Site):
    vm = await machine(site)
    await set_free(site.lab, 50 * GIB)  # of 2 TiB: less than 5 %
    failed = await (await site.begin(vm)).failed()
    assert failed.failure.reason == Reason.REASON_DATASTORE_FULL
    assert "datastore1 has 50.0 GiB free, less than the 102.4 GiB" in failed.failure.message
    assert failed.failure.remedy
    assert not failed.snapshot_left
    assert "call CreateSnapshot_Task" not in await site.counters()
    await site.nothing_left(vm)


async def test_rule_17_a_datastore_that_fills_up_ends_the_copy_and_the_snapshot_goes(site: Site):
    vm = await machine(site)
    await site.lab.guest_write(vm.name, vm.disks[0], 0, b"y" * 4 * MIB)
    backup = await site.begin(vm)
    await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=MIB // 16))
    plan = await backup.until_plan()
    async with backup.exports(plan):
        await backup.until_phase(pb.AGENT_PHASE_COPY)
        await set_free(site.lab, 50 * GIB)
        failed = await backup.failed()
    assert failed.failure.reason == Reason.REASON_DATASTORE_FULL
    assert not failed.snapshot_left
    assert not any(event.HasField("copied") for event in backup.heard)
    await site.nothing_left(vm)


async def test_rule_17_with_nobody_to_ask_the_floor_counts_too_and_the_hub_hears_it_later(site: Site):
    vm = await machine(site)
    backup = await site.begin(vm)
    await backup.until_plan()
    backup.stream.cut()
    await set_free(site.lab, 50 * GIB)
    await snapshot_goes(site, vm)
    failed = await end_heard_later(site, backup)
    assert failed.failure.reason == Reason.REASON_DATASTORE_FULL
    assert not failed.snapshot_left
    await site.nothing_left(vm)


async def test_rule_17_a_snapshot_of_maximum_age_goes_with_nobody_to_ask(
    short_tmp: Path, credentials: Service, lab: LabClient
):
    limits = dataclasses.replace(ATTENTIVE, max_snapshot_age_s=2.0)
    async with running_site(short_tmp, credentials, lab, limits) as site:
        vm = await machine(site)
        backup = await site.begin(vm)
        await backup.until_plan()
        backup.stream.cut()
        await snapshot_goes(site, vm)
        failed = await end_heard_later(site, backup)
        assert failed.failure.reason == Reason.REASON_SNAPSHOT_TOO_OLD
        assert failed.failure.retryable
        assert not failed.snapshot_left
        codes = [event.warning.code for event in backup.heard if event.HasField("warning")]
        assert codes == ["snapshot_old"]
        await site.nothing_left(vm)


async def test_rule_17_an_interrupted_backup_removes_its_snapshot_alone_and_the_hub_hears_it_later(
    short_tmp: Path, credentials: Service, lab: LabClient
):
    """The tunnel is down for good."""
    limits = dataclasses.replace(ATTENTIVE, max_snapshot_age_s=4.0)
    async with running_site(short_tmp, credentials, lab, limits) as site:
        vm = await machine(site)
        backup = await site.begin(vm)
        plan = await backup.until_plan()
        await backup.stream.tell(limit=pb.LimitRate(bytes_per_second=1))
        async with backup.exports(plan):
            await backup.until_phase(pb.AGENT_PHASE_COPY)
            await until(lambda: children(site, "mover"), "the mover runs", WITHIN_S)
            os.kill(children(site, "mover")[0], signal.SIGKILL)
            await backup.interrupted()
        backup.stream.cut()
        assert len(await site.snapshots(vm)) == 1
        await snapshot_goes(site, vm)
        failed = await end_heard_later(site, backup)
        assert failed.failure.reason == Reason.REASON_SNAPSHOT_TOO_OLD
        assert not failed.snapshot_left
        assert (await site.counters())["logins"] == 1
        await site.nothing_left(vm)


async def test_rule_17_a_snapshot_that_is_found_again_is_as_old_as_it_is(
    short_tmp: Path, credentials: Service, lab: LabClient
):
    """An agent that starts again and again must not keep it for ever."""
    limits = dataclasses.replace(ATTENTIVE, max_snapshot_age_s=6.0)
    async with running_site(short_tmp, credentials, lab, limits) as site:
        vm = await machine(site)
        job = Job(site, vm)
        first = await job.begin()
        plan = await first.until_plan()
        await first.stream.tell(limit=pb.LimitRate(bytes_per_second=1))
        async with job.exports(first, plan, {}):
            await first.until_phase(pb.AGENT_PHASE_COPY)
            await asyncio.sleep(3)
            await site.agent.jobs._jobs[first.start.job_id].give_way(
                SendenseError(Reason.REASON_CANCELLED, "x")
            )
        again_at = asyncio.get_running_loop().time()
        second = await job.begin()
        failed = await second.failed()
        assert failed.failure.reason == Reason.REASON_SNAPSHOT_TOO_OLD
        age_s = float(failed.failure.message.partition(" old")[0].split()[-2])
        assert age_s > asyncio.get_running_loop().time() - again_at
        await site.nothing_left(vm)
