# SPDX-License-Identifier: Apache-2.0
"""Requests become jobs that get their turn, or are refused."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from tests.integration.hub.kit import Hub
from tests.integration.hub.scripted_agent import MACHINE, VCENTER

from sendense.agent.v1.agent_service_pb2 import VirtualMachine
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import backup_service_pb2
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import vcenters
from sendense_hub.jobs.engine import Engine
from sendense_hub.jobs.intake import Intake

pytestmark = pytest.mark.integration


class Queue(Engine):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.jobs: list[str] = []

    async def enqueue(self, job: pb.Job) -> None:
        self.jobs.append(job.job_id)


def request(vm: str = "web", **changed: Any) -> backup_service_pb2.StartBackupRequest:
    return backup_service_pb2.StartBackupRequest(**{"request_id": str(uuid.uuid4()), "vm": vm, **changed})


async def test_a_request_gives_one_job_with_one_turn(hub: Hub):
    queue = Queue()
    intake, once = Intake(hub.workshop, queue), request()
    jobs = [await intake.accept(once) for _ in range(2)]
    assert jobs[0].job_id == jobs[1].job_id
    assert set(queue.jobs) == {jobs[0].job_id}, (
        "the second time it is certain, also after a hub that was killed"
    )
    assert (jobs[0].mode, jobs[0].quiesce) == (pb.BACKUP_MODE_AUTO, pb.QUIESCE_TRY)
    assert (jobs[0].vm_instance_uuid, jobs[0].vcenter_name) == (MACHINE, VCENTER)
    with pytest.raises(SendenseError) as busy:
        await intake.accept(request())
    assert busy.value.reason == Reason.REASON_VM_BUSY


async def test_requests_at_one_moment_give_a_vm_one_job(hub: Hub):
    intake = Intake(hub.workshop, Queue())
    answers = await asyncio.gather(*(intake.accept(request()) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(answer, pb.Job) for answer in answers) == 1
    assert sum(isinstance(answer, SendenseError) for answer in answers) == 4


async def test_a_caller_that_hangs_up_between_catalog_and_queue_leaves_the_job_its_turn(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    queue, kept, go_on = Queue(), asyncio.Event(), asyncio.Event()
    run = hub.catalog.run

    async def slow(transaction: Any) -> Any:
        answer: Any = await run(transaction)
        if transaction.__name__ == "keep" and isinstance(answer, pb.Job):
            kept.set()
            await go_on.wait()
        return answer

    monkeypatch.setattr(hub.catalog, "run", slow)
    call = asyncio.create_task(Intake(hub.workshop, queue).accept(request()))
    async with asyncio.timeout(20):
        await kept.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        go_on.set()
        for _ in range(100):
            await asyncio.sleep(0)
    assert len(queue.jobs) == 1


async def test_a_vcenter_that_refuses_makes_a_failed_job_with_its_own_words(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    async def refuse(vcenter: object) -> Any:
        raise SendenseError(Reason.REASON_VCENTER_LOGIN_FAILED, "InvalidLogin")

    monkeypatch.setattr(hub.workshop.sites, "virtual_machines", refuse)
    queue = Queue()
    job = await Intake(hub.workshop, queue).accept(request())
    assert (job.state, job.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_VCENTER_LOGIN_FAILED)
    assert job.failure.metadata["vm"] == "web"
    assert queue.jobs == []
    assert await hub.job(job.job_id) == job


async def test_a_vcenter_that_refuses_hides_no_vm_of_another_one(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    def add(connection: Any) -> None:
        away = vcenters.get(connection, VCENTER)
        away.name = "away"  # the first one in their order
        vcenters.add(connection, away)

    await hub.catalog.run(add)
    ask = hub.workshop.sites.virtual_machines

    async def refuse(vcenter: Any) -> Any:
        if vcenter.name == "away":
            raise SendenseError(Reason.REASON_VCENTER_UNREACHABLE, "no route")
        return await ask(vcenter)

    monkeypatch.setattr(hub.workshop.sites, "virtual_machines", refuse)
    vcenter, machine = await Intake(hub.workshop, Queue()).locate("web", "")
    assert (vcenter.name, machine.instance_uuid) == (VCENTER, MACHINE)
    with pytest.raises(SendenseError) as unknown:
        await Intake(hub.workshop, Queue()).locate("nobody", "")
    assert unknown.value.reason == Reason.REASON_VCENTER_UNREACHABLE


async def test_a_site_that_is_offline_makes_a_failed_job_at_once(hub: Hub):
    queue = Queue()
    intake = Intake(hub.workshop, queue)
    await intake.locate("web", VCENTER)
    hub.world.agent_socket.rename(hub.world.agent_socket.with_name("offline"))
    job = await intake.accept(request())
    assert (job.state, job.failure.reason) == (pb.JOB_STATE_FAILED, Reason.REASON_SITE_OFFLINE)
    assert (job.failure.metadata["vm"], job.vm_instance_uuid) == ("web", MACHINE)
    assert queue.jobs == []
    assert await hub.job(job.job_id) == job


async def test_a_vm_whose_job_waits_for_its_site_is_busy(hub: Hub):
    intake = Intake(hub.workshop, Queue())
    waits = await intake.accept(request())
    hub.world.agent_socket.rename(hub.world.agent_socket.with_name("offline"))
    with pytest.raises(SendenseError) as busy:
        await intake.accept(request())
    assert (busy.value.reason, busy.value.metadata["job"]) == (Reason.REASON_VM_BUSY, waits.job_id)


async def test_rule_21_a_name_that_fits_two_vms_is_refused_with_both(hub: Hub):
    other = VirtualMachine(instance_uuid="other-uuid", moref="vm-2", name="web")
    hub.agent.machines.append(other)
    with pytest.raises(SendenseError) as ambiguous:
        await Intake(hub.workshop, Queue()).accept(request())
    assert ambiguous.value.reason == Reason.REASON_VM_AMBIGUOUS
    assert MACHINE in ambiguous.value.metadata["candidates"]
    assert "other-uuid" in ambiguous.value.metadata["candidates"]
    job = await Intake(hub.workshop, Queue()).accept(request("vm-2"))
    assert job.vm_instance_uuid == "other-uuid"
