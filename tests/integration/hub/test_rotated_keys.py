# SPDX-License-Identifier: Apache-2.0
"""What happens at the credentials service between a lease that was given and its use: which jobs notice.

A real credentials service; the agent is by script, but for the lease, which it redeems as an agent does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.integration.credentials.kit import Service, running
from tests.integration.hub.kit import WITHIN_S, Hub, hub_of, world
from tests.integration.hub.scripted_agent import SITE, VCENTER, ScriptedJob, backup

import sendense.credentials.v1.credential_service_pb2 as operator_pb
from sendense.agent.v1 import backup_pb2 as agent
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import key_service_pb2, lease_service_pb2
from sendense.credentials.v1.key_service_pb2_grpc import KeyServiceStub
from sendense.hub.v1 import job_pb2 as pb
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentKeys
from sendense_hub.catalog import schema
from sendense_hub.domain.resuming import Patience

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("c")) as made:
        yield made


@dataclass
class Rooms:
    """A hub whose vCenter's password is at a real credentials service."""

    hub: Hub
    service: Service
    credential_id: str
    keys: AgentKeys
    """With which the agent redeems."""
    starts: list[agent.BackupStart] = field(default_factory=list)

    async def register(self, keys: AgentKeys) -> None:
        """As `sendense agent approve` does it."""
        await self.service.register(SITE, keys, replace=True)

    async def runs(self, meanwhile: Callable[[Rooms], Awaitable[None]]) -> pb.Job:
        """A job, at whose first lease `meanwhile` happens before the agent redeems it."""

        async def script(job: ScriptedJob) -> None:
            self.starts.append(job.start)
            await job.phase(agent.AGENT_PHASE_LOGIN)
            if len(self.starts) == 1:
                await meanwhile(self)
            lease = job.start.vcenter
            try:
                await self.service.redeem(
                    lease.lease_id, agent_id=SITE, credential_id=lease.credential_id, keys=self.keys
                )
            except SendenseError as error:
                await job.fail(error.reason, message=error.message)
                return
            await job.phase(agent.AGENT_PHASE_PREFLIGHT)
            await backup({})(job)

        self.hub.agent.script = script
        job = await self.hub.run()
        while job.state == pb.JOB_STATE_WAITING:
            async with asyncio.timeout(WITHIN_S):
                await self.hub.runner.run(job.job_id)
            job = await self.hub.job(job.job_id)
        return job


@pytest.fixture
async def rooms(service: Service, short_tmp: Path) -> AsyncIterator[Rooms]:
    async with world(short_tmp) as made:
        made.credentials = service.paths
        async with hub_of(made, patience=Patience(tries=3)) as hub:
            keys = AgentKeys.generate()
            async with service.operator() as stub:
                listed = await stub.ListAgents(operator_pb.ListAgentsRequest())
                if any(each.agent_id == SITE for each in listed.agents):
                    await stub.RemoveAgent(operator_pb.RemoveAgentRequest(agent_id=SITE))
            await service.register(SITE, keys)
            credential_id = (await service.store(granted=[SITE])).credential_id
            of_ours = schema.vcenters.c.name == VCENTER
            change = sa.update(schema.vcenters).where(of_ours).values(credential_id=credential_id)
            await hub.catalog.run(lambda connection: connection.execute(change))
            yield Rooms(hub, service, credential_id, keys)


async def test_a_new_key_encryption_key_is_noticed_by_no_job(rooms: Rooms):
    async def rotated(rooms: Rooms) -> None:
        async with rpc.connect(rooms.service.paths.operator_socket) as channel:
            stub = KeyServiceStub(channel)
            assert (await stub.RotateKey(key_service_pb2.RotateKeyRequest())).made_new_key
            async with asyncio.timeout(WITHIN_S):
                while (answer := await stub.ListKeys(key_service_pb2.ListKeysRequest())).pending_count:
                    pass  # each time is a call
            for key in answer.keys:
                if key.state == key_service_pb2.KEY_STATE_RETIRED:
                    await stub.DropKey(key_service_pb2.DropKeyRequest(key_id=key.key_id))

    job = await rooms.runs(rotated)
    assert (job.state, job.attempt) == (pb.JOB_STATE_SUCCEEDED, 1), job.failure
    assert not job.interruptions


@pytest.mark.parametrize("taken_up", [True, False], ids=["the new keys", "the old keys"])
async def test_a_job_whose_agent_gets_new_keys_goes_on_with_a_new_lease(rooms: Rooms, taken_up: bool):
    """Whether the agent has its new keys in their places already, or takes them up a moment later."""
    old, new = rooms.keys, AgentKeys.generate()

    async def rotated(rooms: Rooms) -> None:
        await rooms.register(new)
        rooms.keys = new if taken_up else old

    async def soon_taken_up() -> None:
        while len(rooms.starts) < 2:  # noqa: ASYNC110 - the second attempt is what is waited for
            await asyncio.sleep(0.01)
        rooms.keys = new

    taking = asyncio.create_task(soon_taken_up())
    try:
        job = await rooms.runs(rotated)
    finally:
        taking.cancel()
    assert job.state == pb.JOB_STATE_SUCCEEDED, job.failure
    (interruption,) = job.interruptions
    assert interruption.failure.reason == Reason.REASON_AGENT_KEYS_REPLACED
    assert "new keys" in interruption.failure.message
    leases = [start.vcenter.lease_id for start in rooms.starts]
    assert len(leases) == len(set(leases)) >= 2


async def test_an_agent_that_never_takes_up_its_new_keys_fails_its_job_after_some_tries(rooms: Rooms):
    job = await rooms.runs(lambda rooms: rooms.register(AgentKeys.generate()))
    assert job.state == pb.JOB_STATE_FAILED
    assert job.failure.reason == Reason.REASON_AGENT_KEYS_REPLACED
    assert len(rooms.starts) == 3


async def changed_password(rooms: Rooms) -> None:
    secret = operator_pb.Secret(username="u", password="another")
    request = operator_pb.RotateCredentialRequest(credential_id=rooms.credential_id, secret=secret)
    async with rooms.service.operator() as stub:
        await stub.RotateCredential(request)


async def grant_taken_back(rooms: Rooms) -> None:
    request = operator_pb.UngrantCredentialRequest(credential_id=rooms.credential_id, agent_id=SITE)
    async with rooms.service.operator() as stub:
        await stub.UngrantCredential(request)


async def grant_taken_back_and_new_keys(rooms: Rooms) -> None:
    await grant_taken_back(rooms)
    rooms.keys = AgentKeys.generate()
    await rooms.register(rooms.keys)


async def given_back_by_the_hub(rooms: Rooms) -> None:
    request = lease_service_pb2.RevokeLeaseRequest(lease_id=rooms.starts[0].vcenter.lease_id)
    async with rooms.service.hub() as stub:
        await stub.RevokeLease(request)


async def site_put_out(rooms: Rooms) -> None:
    async with rooms.service.operator() as stub:
        await stub.RemoveAgent(operator_pb.RemoveAgentRequest(agent_id=SITE))


async def signed_by_somebody_else(rooms: Rooms) -> None:
    rooms.keys = AgentKeys.generate()


async def signed_by_somebody_else_after_new_keys(rooms: Rooms) -> None:
    await rooms.register(AgentKeys.generate())
    rooms.keys = AgentKeys.generate()


@pytest.mark.parametrize(
    ("revoked", "reason"),
    [
        (changed_password, Reason.REASON_LEASE_REVOKED),
        (grant_taken_back, Reason.REASON_LEASE_REVOKED),
        (grant_taken_back_and_new_keys, Reason.REASON_LEASE_REVOKED),
        (given_back_by_the_hub, Reason.REASON_LEASE_REVOKED),
        (site_put_out, Reason.REASON_AGENT_UNKNOWN),
        (signed_by_somebody_else, Reason.REASON_SIGNATURE_INVALID),
        (signed_by_somebody_else_after_new_keys, Reason.REASON_SIGNATURE_INVALID),
    ],
)
async def test_a_right_that_was_taken_away_fails_the_job_at_once(
    rooms: Rooms, revoked: Callable[[Rooms], Awaitable[None]], reason: Reason.ValueType
):
    job = await rooms.runs(revoked)
    assert (job.state, job.attempt) == (pb.JOB_STATE_FAILED, 1)
    assert job.failure.reason == reason
    assert len(rooms.starts) == 1
