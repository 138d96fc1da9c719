# SPDX-License-Identifier: Apache-2.0
"""Finding what one hub's jobs made, over all VMs of a vCenter."""

from __future__ import annotations

import pytest
from tests.integration.vsphere.kit import GRANULE, HUB, calls, tracked

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.vsphere import Session, hub_snapshots
from sendense_agent.vsphere.hub_snapshots import job_of
from sendense_agent.vsphere.machine import describe
from sendense_lab.client import LabClient

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

JOBS = [f"0b0b0b0b-0000-4000-8000-00000000000{number}" for number in range(4)]


async def test_rule_17_all_snapshots_of_this_hub_are_found_and_nobody_elses(
    lab: LabClient, session: Session
) -> None:
    first, one = await tracked(lab, session, "found/1", GRANULE)
    second, two = await tracked(lab, session, "found-2", GRANULE)
    await lab.add_vm("found-none", [GRANULE])
    made = [await one.create_snapshot(HUB, JOBS[0], pb.QUIESCE_MODE_OFF)]
    made.append(await one.create_snapshot(HUB, JOBS[1], pb.QUIESCE_MODE_OFF))  # below the first
    await two.create_snapshot("another-hub", JOBS[2], pb.QUIESCE_MODE_OFF)
    made.append(await two.create_snapshot(HUB, JOBS[3], pb.QUIESCE_MODE_OFF))  # below another hub's
    found = {each.job_id: each for each in await hub_snapshots(session, HUB)}
    assert sorted(found) == [JOBS[0], JOBS[1], JOBS[3]]
    assert [found[job].vm_instance_uuid for job in sorted(found)] == [
        first.instance_uuid, first.instance_uuid, second.instance_uuid
    ]  # fmt: skip
    assert found[JOBS[0]].vm_name == "found/1", "as people see it"
    assert [found[job].snapshot_moref for job in sorted(found)] == [each.moref for each in made]


async def test_all_vms_cost_one_query_however_many_there_are(lab: LabClient, session: Session) -> None:
    for number in range(12):
        await lab.add_vm(f"many-{number}", [GRANULE])
    before = await calls(lab, "RetrievePropertiesEx")
    assert await hub_snapshots(session, "a hub without any") == []
    assert await calls(lab, "RetrievePropertiesEx") == before + 1


@pytest.mark.parametrize(
    "description",
    [
        "",
        "before the upgrade",
        describe("hub-2", JOBS[0]),
        describe(HUB, JOBS[0]) + " ",
        describe(HUB, JOBS[0]).upper(),
        describe(HUB, ""),
        describe(HUB, "x"),
        describe(HUB, JOBS[0]).replace("hub=", "hub=x"),
        f"copy of {describe(HUB, JOBS[0])}",
    ],
)
async def test_rule_17_a_description_that_is_not_exactly_ours_is_not_ours(description: str) -> None:
    assert job_of(describe(HUB, JOBS[0]), HUB) == JOBS[0]
    assert job_of(description, HUB) == ""
