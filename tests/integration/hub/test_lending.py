# SPDX-License-Identifier: Apache-2.0
"""More leases for a backup that runs, and leases that are given back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.hub.kit import Hub, hub_of, world
from tests.integration.hub.scripted_agent import VCENTER, ScriptedJob, backup

from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.failure_pb2 import Failure
from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import job_pb2 as pb
from sendense_common.errors import SendenseError
from sendense_hub.catalog import vcenters

pytestmark = pytest.mark.integration


@pytest.fixture
async def hub(short_tmp: Path) -> AsyncIterator[Hub]:
    async with world(short_tmp) as made, hub_of(made) as running:
        yield running


async def ask(job: ScriptedJob, request_id: str) -> agent.LeaseGiven:
    await job.say(lease_wanted=agent.LeaseWanted(request_id=request_id))

    def answers() -> list[agent.LeaseGiven]:
        return [each.lease for each in job.heard if each.lease.request_id == request_id]

    async with job.news:
        await job.news.wait_for(answers)
    return answers()[0]


async def test_an_agent_that_has_to_log_in_again_gets_another_lease_as_the_vcenter_is_now(hub: Hub):
    given: list[agent.LeaseGiven] = []

    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        given.append(await ask(job, "one"))
        await job.say(logged_in=agent.LoggedInAgain())
        await job.say(lease_wanted=agent.LeaseWanted(request_id="one"))  # said twice, it is one
        changed = await hub.catalog.run(lambda connection: vcenters.get(connection, VCENTER))
        changed.port = 8443
        await hub.catalog.run(lambda connection: vcenters.change(connection, changed))
        given.append(await ask(job, "two"))
        await job.say(logged_in=agent.LoggedInAgain())
        await backup({})(job)

    hub.agent.script = script
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED
    assert [each.request_id for each in given] == ["one", "two"]
    assert [each.vcenter.port for each in given] == [443, 8443]
    assert all(each.vcenter.credential_id == "cred" for each in given)
    assert len(hub.world.leases.issued) == 3


async def test_after_a_refusal_at_the_second_login_nobody_gets_a_lease(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        await ask(job, "one")
        await job.fail(Reason.REASON_VCENTER_LOGIN_FAILED, message="vim.fault.InvalidLogin")

    hub.agent.script = script
    assert (await hub.run()).failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    vcenter = await hub.catalog.run(lambda connection: vcenters.get(connection, VCENTER))
    assert vcenter.HasField("login_refused_time")

    async def asks(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        await job.hear("cancel")

    hub.agent.script = asks
    issued = len(hub.world.leases.issued)
    assert (await hub.run()).failure.reason == Reason.REASON_VCENTER_LOGIN_FAILED
    assert len(hub.world.leases.issued) == issued


async def test_why_there_is_no_lease_is_told_to_the_agent(hub: Hub):
    heard: list[agent.LeaseGiven] = []

    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        hub.world.leases.refusal = SendenseError(Reason.REASON_CREDENTIAL_NOT_GRANTED, "taken back")
        heard.append(await ask(job, "one"))
        await job.fail(heard[0].failure.reason, message=heard[0].failure.message)

    hub.agent.script = script
    failure = (await hub.run()).failure
    assert (failure.reason, failure.message) == (Reason.REASON_CREDENTIAL_NOT_GRANTED, "taken back")
    assert not heard[0].HasField("vcenter")


async def test_the_lease_of_what_fails_before_it_was_used_is_given_back(hub: Hub):
    hub.agent.refusal = SendenseError(Reason.REASON_INVALID_REQUEST, "the agent does not like it")
    assert (await hub.run()).state == pb.JOB_STATE_FAILED
    vcenter = await hub.catalog.run(lambda connection: vcenters.get(connection, VCENTER))
    hub.agent.refuses_logins = True
    with pytest.raises(SendenseError):
        await hub.workshop.sites.test_vcenter(vcenter)
    leases = hub.world.leases
    assert leases.given_back == [each for each in leases.issued if "cleaning up" not in each]
    assert len(leases.given_back) == 2
    hub.agent.refuses_logins = False
    await hub.workshop.sites.test_vcenter(vcenter)
    assert len(leases.given_back) == 2, "what was used is not"


async def test_a_job_whose_agent_asks_for_leases_without_end_is_ended(hub: Hub):
    """Also when it says that each was used."""
    given: list[agent.LeaseGiven] = []

    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        for number in range(100):
            given.append(await ask(job, f"request {number}"))
            await job.say(logged_in=agent.LoggedInAgain())

    hub.agent.script = script
    failure = (await hub.run()).failure
    assert failure.reason == Reason.REASON_LEASES_LIMITED
    assert "more leases for this job than logins can need" in failure.message
    assert len(given) == 20
    assert len(hub.world.leases.issued) == 21


async def test_what_is_no_id_of_a_request_is_refused(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.say(lease_wanted=agent.LeaseWanted(request_id="x" * 1_000_000))
        await job.hear("cancel")

    hub.agent.script = script
    assert (await hub.run()).failure.reason == Reason.REASON_INVALID_REQUEST
    assert len(hub.world.leases.issued) == 1


async def test_after_a_rejoin_only_the_newest_lease_is_said_again(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        await job.phase(agent.AGENT_PHASE_PREFLIGHT)
        for number in range(3):
            await ask(job, f"request {number}")
            await job.say(logged_in=agent.LoggedInAgain())
        await job.drop(None)
        async with job.news:
            await job.news.wait_for(lambda: job.count("lease") > 3)
        await backup({})(job)

    hub.agent.script = script
    assert (await hub.run()).state == pb.JOB_STATE_SUCCEEDED
    said = [each.lease.request_id for each in hub.agent.job.heard if each.HasField("lease")]
    assert said == ["request 0", "request 1", "request 2", "request 2"]


async def test_an_agents_words_do_not_fill_the_catalog(hub: Hub):
    async def script(job: ScriptedJob) -> None:
        for number in range(205):
            await job.say(warning=agent.Warning(code=f"c{number}", message="x" * 100_000))
        await job.say(
            failed=agent.BackupFailed(
                failure=Failure(
                    reason=Reason.REASON_QUIESCE_FAILED,
                    message="y" * 1_000_000,
                    remedy="z" * 1_000_000,
                    metadata={f"fact {number}": "f" * 10_000 for number in range(100)},
                )
            )
        )

    hub.agent.script = script
    job = await hub.run()
    assert job.failure.reason == Reason.REASON_QUIESCE_FAILED
    assert job.failure.message.startswith("yyy")
    assert [each.code for each in job.warnings][-2:] == ["c199", "warnings_left_out"]
    assert job.ByteSize() < 300 * 1024
