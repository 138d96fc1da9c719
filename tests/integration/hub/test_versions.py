# SPDX-License-Identifier: Apache-2.0
"""Agents of other versions: they work with this hub, or are refused with what to upgrade."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.hub.kit import Hub
from tests.integration.hub.scripted_agent import (
    SITE,
    VCENTER,
    ScriptedJob,
    backup,
    incremental,
    plan_of,
)
from tests.integration.hub.test_backups import FIRST, THEN

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense.hub.v1 import system_service_pb2
from sendense_agent.rpc.agent_service import AgentService
from sendense_common import protocol
from sendense_common.audit_log import AuditLog
from sendense_common.errors import SendenseError
from sendense_common.protocol import Protocols
from sendense_hub.catalog import vcenters
from sendense_hub.jobs.audit_watch import AuditWatch
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.rpc.admission import Admission
from sendense_hub.rpc.door import Door
from sendense_hub.rpc.system_service import SystemService

pytestmark = pytest.mark.integration


async def checks(hub: Hub) -> dict[str, system_service_pb2.Check]:
    paths, credentials, workshop = hub.world.paths, hub.world.credentials, hub.workshop
    door = Door(None, Admission(workshop.catalog))
    with contextlib.closing(AuditLog(paths.audit_log_dir, "hub", clock=lambda: 1)) as log:
        watch = AuditWatch(log, hub.catalog, workshop.sites, credentials.hub_socket)
        service = SystemService(
            workshop, hub.reconciler(), Enrolment(workshop), watch, paths, credentials, door
        )
        request = system_service_pb2.DiagnoseRequest()
        return {each.name: each for each in (await service.Diagnose(request, None)).checks}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "here", "spoken"), [((0, 0), (1, 3), 1), ((1, 2), (2, 3), 2), ((3, 7), (1, 3), 3)]
)
async def test_older_and_newer_agents_that_have_a_protocol_in_common_work(
    hub: Hub, said: tuple[int, int], here: tuple[int, int], spoken: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "HERE", Protocols(*here))
    hub.agent.protocols = said
    hub.agent.script = backup(FIRST)
    job = await hub.run()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    assert hub.agent.starts[-1].protocol == spoken
    assert (await checks(hub))[f"site.{SITE}"].status == system_service_pb2.CHECK_STATUS_OK


@pytest.mark.parametrize(("said", "here", "older"), [((0, 0), (2, 3), "agent"), ((4, 5), (1, 3), "hub")])
async def test_an_agent_without_one_in_common_is_refused_and_nothing_is_left(
    hub: Hub, said: tuple[int, int], here: tuple[int, int], older: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(protocol, "HERE", Protocols(*here))
    hub.agent.protocols = said
    job = await hub.run()
    assert job.state == pb.JOB_STATE_FAILED
    assert job.failure.reason == Reason.REASON_VERSION_NOT_SUPPORTED
    assert not job.failure.retryable
    assert "is version test" in job.failure.message
    assert f"Upgrade the {older}" in job.failure.remedy
    assert hub.agent.starts == [], "it was never asked to begin"
    await hub.assert_nothing_left()
    check = (await checks(hub))[f"site.{SITE}"]
    assert check.status == system_service_pb2.CHECK_STATUS_ERROR
    assert f"Upgrade the {older}" in check.remedy
    vcenter = await hub.catalog.run(lambda connection: vcenters.get(connection, VCENTER))
    with pytest.raises(SendenseError) as refused:
        await hub.workshop.sites.virtual_machines(vcenter)
    assert refused.value.reason == Reason.REASON_VERSION_NOT_SUPPORTED
    assert hub.agent.logins_count == 0

    hub.agent.protocols = here  # it was upgraded
    hub.agent.script = backup(FIRST)
    again = await hub.run()
    assert again.state == pb.JOB_STATE_SUCCEEDED, again.failure


async def test_events_and_fields_that_a_newer_agent_adds_are_left_alone(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        unknown = agent.RunBackupResponse.FromString(b"\xfa\x3f\x02\x08\x01")  # field 1023, a message
        assert unknown.WhichOneof("event") is None
        assert unknown.SerializeToString()
        plan = plan_of()
        plan.MergeFromString(b"\xfa\x3f\x02\x08\x01")
        await job.phase(agent.AGENT_PHASE_LOGIN)
        numbered = agent.RunBackupResponse.FromString(unknown.SerializeToString())
        numbered.seq = len(job.events) + 1
        async with job.news:
            job.events.append(numbered)
            job.news.notify_all()
        exports = await job.snapshot_and_plan(plan)
        for export in exports:
            await job.copy(export, FIRST[2000])
        await job.finish()

    hub.agent.script = script
    first = await hub.run()
    assert first.state == pb.JOB_STATE_SUCCEEDED, first.failure
    hub.agent.script = backup(THEN, plan_of(incremental()))
    second = await hub.run(pb.BACKUP_MODE_INCREMENTAL)
    assert second.state == pb.JOB_STATE_SUCCEEDED, second.failure


async def test_an_agent_refuses_a_hub_that_wants_what_it_does_not_speak():
    async def requests() -> AsyncIterator[Any]:
        yield agent.RunBackupRequest(start=agent.BackupStart(job_id="j", protocol=9))

    service = AgentService("paris", None, SimpleNamespace(ids=list), None)  # type: ignore[arg-type]
    answer = await service.GetAgent(None, None)  # type: ignore[arg-type]
    assert Protocols(answer.oldest_protocol, answer.newest_protocol) == protocol.HERE
    with pytest.raises(SendenseError) as refused:
        async for _ in service.RunBackup(requests(), None):  # type: ignore[arg-type]
            pass
    assert refused.value.reason == Reason.REASON_VERSION_NOT_SUPPORTED
    assert refused.value.remedy == "Upgrade the agent."
