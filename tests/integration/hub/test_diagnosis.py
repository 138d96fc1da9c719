# SPDX-License-Identifier: Apache-2.0
"""What the hub tells `sendense doctor` of running jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.hub.kit import Api, World, api_of, until, world
from tests.integration.hub.scripted_agent import MACHINE_NAME

from sendense.agent.v1 import backup_pb2 as agent
from sendense.hub.v1 import job_service_pb2
from sendense.hub.v1 import system_service_pb2 as pb
from sendense.hub.v1.system_service_pb2_grpc import SystemServiceStub

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


async def checks(api: Api) -> dict[str, pb.Check]:
    answer = await SystemServiceStub(api.channel).Diagnose(pb.DiagnoseRequest(), timeout=30)
    return {each.name: each for each in answer.checks}


async def test_rule_17_a_running_job_with_an_old_snapshot_is_told_until_it_ends(api: Api):
    async def warns(job) -> None:
        await job.say(warning=agent.Warning(code="snapshot_old", message="Its snapshot is 12.0 h old."))
        await job.hear("cancel")

    assert (await checks(api))["snapshots.age"].status == pb.CHECK_STATUS_OK
    api.world.agent.script = warns
    job_id = (await api.start_backup()).job_id
    await until(lambda: api.world.agent.jobs and api.world.agent.job.acked, "the hub has stored the warning")
    found = (await checks(api))["snapshots.age"]
    assert found.status == pb.CHECK_STATUS_WARNING
    assert MACHINE_NAME in found.finding
    assert job_id[:8] in found.finding
    assert found.remedy
    assert [each.code for each in (await api.job(job_id)).warnings] == ["snapshot_old"]
    await api.jobs.CancelJob(job_service_pb2.CancelJobRequest(job_id=job_id))
    await api.ended(job_id)
    assert (await checks(api))["snapshots.age"].status == pb.CHECK_STATUS_OK


async def test_doctor_shows_who_may_connect_and_how_many(api: Api, surroundings: World):
    assert "ssh.limits" not in await checks(api)
    surroundings.paths.endpoint_file.write_text("0.0.0.0:8022\n")
    surroundings.paths.ssh_limits_file.write_text("256 connections may be logging in\n")
    assert (await checks(api))["ssh.limits"].finding == "256 connections may be logging in"
