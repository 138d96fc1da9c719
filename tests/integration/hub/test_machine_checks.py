# SPDX-License-Identifier: Apache-2.0
"""What the hub makes of an agent's findings about a VM, and what it adds."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from tests.integration.hub.kit import Api, World, api_of, world
from tests.integration.hub.scripted_agent import CAPACITY, MACHINE, MACHINE_NAME, VCENTER

from sendense.agent.v1 import agent_service_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import system_service_pb2 as system_pb
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.integration


@pytest.fixture
async def surroundings(short_tmp: Path):
    async with world(short_tmp) as made:
        yield made


@pytest.fixture
async def api(surroundings: World):
    async with api_of(surroundings) as running:
        await running.register()
        yield running


async def check(api: Api, **request: str) -> pb.CheckVirtualMachineResponse:
    answer: pb.CheckVirtualMachineResponse = await VcenterServiceStub(api.channel).CheckVirtualMachine(
        pb.CheckVirtualMachineRequest(**{"vm": MACHINE_NAME, **request}), timeout=30
    )
    return answer


async def test_findings_are_passed_on_and_jobs_and_space_here_are_added(api: Api):
    api.world.agent.findings = [
        agent.MachineFinding(
            name="tools", severity=agent.SEVERITY_WARNING, finding="do not run", remedy="Start them."
        ),
        agent.MachineFinding(name="power", severity=agent.SEVERITY_OK, finding="is on"),
        agent.MachineFinding(name="disk.2000", severity=agent.SEVERITY_ERROR, finding="needs VDDK"),
        agent.MachineFinding(name="new", severity=17, finding="of a newer agent"),  # type: ignore[arg-type]
    ]
    answer = await check(api)
    assert (answer.vcenter_name, answer.vm_name, answer.vm_instance_uuid) == (VCENTER, MACHINE_NAME, MACHINE)
    status = {each.name: each.status for each in answer.checks}
    assert status == {
        "tools": system_pb.CHECK_STATUS_WARNING,
        "power": system_pb.CHECK_STATUS_OK,
        "disk.2000": system_pb.CHECK_STATUS_ERROR,
        "new": system_pb.CHECK_STATUS_WARNING,
        "jobs": system_pb.CHECK_STATUS_OK,
        "repository.default": system_pb.CHECK_STATUS_OK,
    }
    first = answer.checks[0]
    assert (first.finding, first.remedy) == ("do not run", "Start them.")
    (asked,) = api.world.agent.checked
    assert (asked.vm_instance_uuid, asked.vm_name) == (MACHINE, MACHINE_NAME)
    assert asked.vcenter.lease_id
    assert asked.hub_id


async def test_a_repository_that_could_not_hold_a_full_is_a_warning(api: Api):
    api.world.agent.machines[0].disks[0].capacity_bytes = 1 << 60
    (space,) = [each for each in (await check(api)).checks if each.name.startswith("repository.")]
    assert space.status == system_pb.CHECK_STATUS_WARNING
    assert "may not fit" in space.finding
    api.world.agent.machines[0].disks[0].capacity_bytes = CAPACITY


async def test_a_job_of_the_vm_that_has_not_ended_is_named(api: Api):
    async def waits(job) -> None:
        await job.hear("cancel")

    api.world.agent.script = waits
    job = await api.start_backup()
    (jobs,) = [each for each in (await check(api)).checks if each.name == "jobs"]
    assert jobs.status == system_pb.CHECK_STATUS_WARNING
    assert job.job_id in jobs.finding


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"vm": "nobody"}, Reason.REASON_VM_NOT_FOUND),
        ({"vm": ""}, Reason.REASON_INVALID_REQUEST),
        ({"vcenter_name": "elsewhere"}, Reason.REASON_VCENTER_NOT_FOUND),
        ({"repository_name": "elsewhere"}, Reason.REASON_REPOSITORY_NOT_FOUND),
    ],
)
async def test_what_is_not_there_is_said_to_be(api: Api, request_: dict[str, str], reason: Reason.ValueType):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(api, **request_)
    assert SendenseError.from_rpc(caught.value).reason == reason
    assert api.world.agent.checked == []
