# SPDX-License-Identifier: Apache-2.0
"""Who may open a credential, and which vCenter it is for: an operator says it, and no hub can change it."""

from __future__ import annotations

import uuid

import pytest
from tests.integration.credentials.kit import (
    ENDPOINT,
    PASSWORD,
    Service,
    failure_of,
    reason_of,
    store_request,
)

import sendense.credentials.v1.credential_service_pb2 as pb
import sendense.credentials.v1.lease_service_pb2 as hub_pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.keys import AgentKeys

pytestmark = pytest.mark.integration

ELSEWHERE = pb.Endpoint(host="vc2.example.net", port=8443, certificate_sha256=bytes([1]) * 32)


@pytest.fixture
async def second(service: Service) -> tuple[str, AgentKeys]:
    """Another agent."""
    name, keys = f"site-b{uuid.uuid4().hex[:8]}", AgentKeys.generate()
    await service.register(name, keys)
    return name, keys


async def grant(service: Service, credential_id: str, agent_id: str) -> list[str]:
    request = pb.GrantCredentialRequest(credential_id=credential_id, agent_id=agent_id)
    async with service.operator() as stub:
        return list((await stub.GrantCredential(request)).credential.agent_ids)


async def ungrant(service: Service, credential_id: str, agent_id: str) -> list[str]:
    request = pb.UngrantCredentialRequest(credential_id=credential_id, agent_id=agent_id)
    async with service.operator() as stub:
        return list((await stub.UngrantCredential(request)).credential.agent_ids)


async def kept(service: Service, credential_id: str) -> pb.Credential:
    async with service.operator() as stub:
        listed = (await stub.ListCredentials(pb.ListCredentialsRequest())).credentials
    return next(each for each in listed if each.credential_id == credential_id)


async def test_a_lease_for_an_agent_without_a_grant_is_refused(service: Service, second):
    agent_id, keys = second
    credential_id = (await service.store()).credential_id
    refused = await failure_of(service.issue(credential_id, agent_id))
    assert refused.reason == Reason.REASON_CREDENTIAL_NOT_GRANTED
    assert f"is not granted to agent {agent_id}, but to site-a" in refused.message
    assert f"--agent {agent_id}" in refused.remedy
    assert await grant(service, credential_id, agent_id) == ["site-a", agent_id]
    assert await grant(service, credential_id, agent_id) == ["site-a", agent_id]
    lease = await service.issue(credential_id, agent_id)
    assert (await service.redeem(lease, agent_id=agent_id, keys=keys)).password == PASSWORD


async def test_a_grant_that_is_taken_back_ends_the_leases_of_that_agent_alone(service: Service, second):
    agent_id, keys = second
    credential_id = (await service.store(granted=["site-a", agent_id])).credential_id
    mine, other = await service.issue(credential_id, agent_id), await service.issue(credential_id)
    assert await ungrant(service, credential_id, agent_id) == ["site-a"]
    refused = await failure_of(service.redeem(mine, agent_id=agent_id, keys=keys))
    assert refused.reason == Reason.REASON_LEASE_REVOKED
    assert "grant of its credential was taken back" in refused.message
    assert await reason_of(service.issue(credential_id, agent_id)) == Reason.REASON_CREDENTIAL_NOT_GRANTED
    assert (await service.redeem(other)).password == PASSWORD
    again = ungrant(service, credential_id, agent_id)
    assert await reason_of(again) == Reason.REASON_CREDENTIAL_NOT_GRANTED


async def test_only_known_agents_and_credentials_are_granted(service: Service):
    credential_id = (await service.store()).credential_id
    assert await reason_of(grant(service, credential_id, "nobody")) == Reason.REASON_AGENT_UNKNOWN
    gone = str(uuid.uuid4())
    assert await reason_of(grant(service, gone, "site-a")) == Reason.REASON_CREDENTIAL_NOT_FOUND
    assert await reason_of(ungrant(service, gone, "site-a")) == Reason.REASON_CREDENTIAL_NOT_FOUND
    name = f"vcenter-{uuid.uuid4()}"
    assert await reason_of(service.store(name, granted=["nobody"])) == Reason.REASON_AGENT_UNKNOWN
    async with service.operator() as stub:
        listed = (await stub.ListCredentials(pb.ListCredentialsRequest())).credentials
    assert name not in {each.name for each in listed}


async def test_an_agent_that_comes_back_has_no_grants(service: Service, second):
    agent_id, keys = second
    credential_id = (await service.store(granted=[agent_id])).credential_id
    async with service.operator() as stub:
        await stub.RemoveAgent(pb.RemoveAgentRequest(agent_id=agent_id))
    await service.register(agent_id, keys)
    assert list((await kept(service, credential_id)).agent_ids) == []
    assert await reason_of(service.issue(credential_id, agent_id)) == Reason.REASON_CREDENTIAL_NOT_GRANTED


async def test_a_credential_without_an_endpoint_is_not_stored(service: Service):
    request = store_request()
    request.secret.ClearField("endpoint")
    async with service.operator() as stub:
        refused = await failure_of(stub.StoreCredential(request))
    assert refused.metadata["field"] == "secret.endpoint"


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [
        (pb.Endpoint(host="", port=1, certificate_sha256=bytes(32)), "endpoint.host"),
        (pb.Endpoint(host="a b", port=1, certificate_sha256=bytes(32)), "endpoint.host"),
        (pb.Endpoint(host="a", port=0, certificate_sha256=bytes(32)), "endpoint.port"),
        (pb.Endpoint(host="a", port=1), "endpoint.trust"),
        (pb.Endpoint(host="a", port=1, certificate_sha256=bytes(31)), "endpoint.trust"),
        (pb.Endpoint(host="a", port=1, ca_pem=" "), "endpoint.ca_pem"),
        (pb.Endpoint(host="a", port=1, ca_pem="x" * 2**17), "endpoint.ca_pem"),
    ],
    ids=["no host", "blank", "port", "no trust", "short", "empty CA", "long CA"],
)
async def test_an_endpoint_without_certain_trust_is_refused(service: Service, endpoint, field):
    refused = await failure_of(service.store(endpoint=endpoint))
    assert refused.reason == Reason.REASON_INVALID_REQUEST
    assert refused.metadata["field"] == field


async def test_the_endpoint_comes_with_the_password_and_stays_when_that_changes(service: Service):
    credential = await service.store()
    assert credential.bound_to == "vc.example.net:443"
    lease = await service.issue(credential.credential_id)
    assert (await service.redeem(lease)).endpoint == ENDPOINT
    secret = pb.Secret(username="u", password="another one")
    async with service.operator() as stub:
        request = pb.RotateCredentialRequest(credential_id=credential.credential_id, secret=secret)
        await stub.RotateCredential(request)
    login = await service.redeem(await service.issue(credential.credential_id))
    assert (login.password, login.endpoint) == ("another one", ENDPOINT)


async def test_another_endpoint_ends_open_leases_and_keeps_the_password(service: Service):
    credential = await service.store()
    lease = await service.issue(credential.credential_id)
    async with service.operator() as stub:
        request = pb.BindCredentialRequest(credential_id=credential.credential_id, endpoint=ELSEWHERE)
        after = (await stub.BindCredential(request)).credential
    assert after.bound_to == "vc2.example.net:8443"
    assert after.rotate_time == credential.rotate_time
    refused = await failure_of(service.redeem(lease))
    assert refused.reason == Reason.REASON_LEASE_REVOKED
    assert "address or trust was changed" in refused.message
    login = await service.redeem(await service.issue(credential.credential_id))
    assert (login.password, login.endpoint) == (PASSWORD, ELSEWHERE)


@pytest.mark.parametrize("kept", ["address", "trust"])
async def test_what_is_not_given_of_an_endpoint_stays_as_it_was_sealed(service: Service, kept: str):
    credential, wanted = await service.store(), pb.Endpoint()
    wanted.CopyFrom(ELSEWHERE)
    for field in ("host", "port") if kept == "address" else ("trust",):
        wanted.ClearField(field)
    # Not what the column says, which anybody who writes the database could have put there.
    with service.database() as database:
        database.execute("UPDATE credentials SET bound_to = 'evil.example.net:443'")
    async with service.operator() as stub:
        request = pb.BindCredentialRequest(credential_id=credential.credential_id, endpoint=wanted)
        after = (await stub.BindCredential(request)).credential
        nothing = pb.BindCredentialRequest(credential_id=credential.credential_id)
        assert (await failure_of(stub.BindCredential(nothing))).metadata["field"] == "endpoint"
    at, by = (ENDPOINT, ELSEWHERE) if kept == "address" else (ELSEWHERE, ENDPOINT)
    expected = pb.Endpoint(host=at.host, port=at.port, certificate_sha256=by.certificate_sha256)
    assert after.bound_to == f"{expected.host}:{expected.port}"
    assert (await service.redeem(await service.issue(credential.credential_id))).endpoint == expected


async def test_who_alters_the_database_cannot_change_where_a_password_goes(service: Service):
    credential = await service.store()
    with service.database() as database:
        database.execute(
            "UPDATE credentials SET bound_to = 'evil.example.net:443' WHERE credential_id = ?",
            [credential.credential_id],
        )
    login = await service.redeem(await service.issue(credential.credential_id))
    assert login.endpoint == ENDPOINT


async def test_a_credential_with_an_open_lease_is_not_deleted(service: Service):
    credential_id = (await service.store()).credential_id
    lease = await service.issue(credential_id)
    request = pb.DeleteCredentialRequest(credential_id=credential_id)
    async with service.operator() as stub, service.hub() as hub:
        refused = await failure_of(stub.DeleteCredential(request))
        assert refused.reason == Reason.REASON_CREDENTIAL_IN_USE
        assert "agent site-a has a lease for BACKUP (job 1)" in refused.message
        await hub.RevokeLease(hub_pb.RevokeLeaseRequest(lease_id=lease))
        await stub.DeleteCredential(request)
        assert await reason_of(stub.DeleteCredential(request)) == Reason.REASON_CREDENTIAL_NOT_FOUND
