# SPDX-License-Identifier: Apache-2.0
"""What operators do: through the real process's socket."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.credentials.kit import (
    ENDPOINT,
    PASSWORD,
    USERNAME,
    Service,
    failure_of,
    reason_of,
    store_request,
)

import sendense.credentials.v1.credential_service_pb2 as pb
import sendense.credentials.v1.lease_service_pb2 as hub_pb
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentKeys

pytestmark = pytest.mark.integration


async def opened(service: Service, credential_id: str) -> str:
    """The password that an agent gets."""
    login = await service.redeem(await service.issue(credential_id))
    assert login.username == USERNAME
    return login.password


@pytest.mark.parametrize(
    "password",
    [
        "+-\"'\\ $#%",
        "-starts with a dash",
        "+starts with a plus",
        "  blanks at both ends  ",
        "\ttab, newline\n, and nothing\0",
        "pässwörd-пароль-密码-🔑",
        "e\u0301 is not \u00e9",
        "x" * 128,
        "🔑" * 1024,
    ],
)
async def test_ff23_odd_passwords_arrive_exactly(service: Service, password: str):
    assert await opened(service, (await service.store(password=password)).credential_id) == password


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(password=st.text(min_size=1, max_size=1024))
async def test_ff23_any_text_arrives_exactly(service: Service, password: str):
    assert await opened(service, (await service.store(password=password)).credential_id) == password


async def test_storing_again_with_the_same_request_id_returns_the_first_answer(service: Service):
    request = store_request()
    request.agent_ids.append("site-a")
    async with service.operator() as stub:
        first = await stub.StoreCredential(request)
        request.secret.password = "another"  # a client that lost its memory: what is stored stays
        assert await stub.StoreCredential(request) == first
        assert await opened(service, first.credential.credential_id) == PASSWORD
        request.name += "-2"
        assert await reason_of(stub.StoreCredential(request)) == Reason.REASON_INVALID_REQUEST


async def test_a_name_is_taken_once(service: Service):
    request = store_request()
    async with service.operator() as stub:
        await stub.StoreCredential(request)
        answers = [reason_of(stub.StoreCredential(store_request(request.name))) for _ in range(3)]
        assert await asyncio.gather(*answers) == [Reason.REASON_CREDENTIAL_EXISTS] * 3


async def test_the_list_is_by_name_and_shows_no_secret(service: Service):
    await service.store("zz")
    await service.store("aa", password="a password nobody should see")
    async with service.operator() as stub:
        answer = await stub.ListCredentials(pb.ListCredentialsRequest())
    names = [each.name for each in answer.credentials]
    assert names == sorted(names)
    assert names[0] == "aa"
    assert answer.credentials[0].key_id.startswith("kek-")
    assert answer.credentials[0].create_time == answer.credentials[0].rotate_time
    text = str(answer)
    assert "nobody should see" not in text
    assert USERNAME not in text


async def test_rotation_replaces_the_secret_and_ends_open_leases(service: Service):
    stored = await service.store()
    before = await service.issue(stored.credential_id)
    async with service.operator() as stub:
        answer = await stub.RotateCredential(
            pb.RotateCredentialRequest(
                credential_id=stored.credential_id, secret=pb.Secret(username=USERNAME, password="new")
            )
        )
    assert answer.credential.name == stored.name
    assert answer.credential.create_time == stored.create_time
    assert answer.credential.rotate_time.ToMicroseconds() > stored.rotate_time.ToMicroseconds()
    ended = await failure_of(service.redeem(before))
    assert ended.reason == Reason.REASON_LEASE_REVOKED
    assert "its password was changed" in ended.message
    assert await opened(service, stored.credential_id) == "new"


async def test_deletion_takes_the_leases_along(service: Service):
    stored = await service.store()
    lease = await service.issue(stored.credential_id)
    request = pb.DeleteCredentialRequest(credential_id=stored.credential_id)
    async with service.operator() as stub, service.hub() as hub:
        await hub.RevokeLease(hub_pb.RevokeLeaseRequest(lease_id=lease))
        await stub.DeleteCredential(request)
        assert await reason_of(stub.DeleteCredential(request)) == Reason.REASON_CREDENTIAL_NOT_FOUND
        rotation = pb.RotateCredentialRequest(
            credential_id=stored.credential_id, secret=pb.Secret(username="u", password="p")
        )
        assert await reason_of(stub.RotateCredential(rotation)) == Reason.REASON_CREDENTIAL_NOT_FOUND
    assert await reason_of(service.redeem(lease)) == Reason.REASON_LEASE_INVALID
    assert await reason_of(service.issue(stored.credential_id)) == Reason.REASON_CREDENTIAL_NOT_FOUND
    with service.database() as database:
        assert database.execute(
            "SELECT count(*) FROM leases WHERE credential_id = ?", [stored.credential_id]
        ).fetchone() == (0,)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": "1"}, "request_id"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"secret": pb.Secret(password="sesame")}, "secret.username"),
        ({"secret": pb.Secret(username="u")}, "secret.password"),
        ({"secret": pb.Secret(username="u", password="sesame" * 200)}, "secret.password"),
    ],
)
async def test_malformed_requests_name_the_field_and_quote_nothing(service: Service, change, field):
    request = store_request()
    for name, value in change.items():
        request.ClearField(name)
        request.MergeFrom(pb.StoreCredentialRequest(**{name: value}))
    async with service.operator() as stub:
        error = await failure_of(stub.StoreCredential(request))
    assert error.reason == Reason.REASON_INVALID_REQUEST
    assert error.metadata["field"] == field
    assert "sesame" not in repr(error.__dict__)


def agent_message(agent_id: str, keys: AgentKeys) -> pb.RegisterAgentRequest:
    return pb.RegisterAgentRequest(
        agent=pb.Agent(
            agent_id=agent_id,
            signing_public_key=keys.public.signing,
            sealing_public_key=keys.public.sealing,
        )
    )


async def test_agents_are_known_by_one_set_of_keys(service: Service):
    keys, others = AgentKeys.generate(), AgentKeys.generate()
    async with service.operator() as stub:
        await stub.RegisterAgent(agent_message("site-b", keys))
        await stub.RegisterAgent(agent_message("site-b", keys))
        listed = (await stub.ListAgents(pb.ListAgentsRequest())).agents
        assert [each.agent_id for each in listed] == ["site-a", "site-b"]
        assert listed[1] == agent_message("site-b", keys).agent
        other_keys = await failure_of(stub.RegisterAgent(agent_message("site-b", others)))
        assert other_keys.reason == Reason.REASON_SITE_EXISTS
        same_keys = await failure_of(stub.RegisterAgent(agent_message("site-c", keys)))
        assert same_keys.reason == Reason.REASON_SITE_EXISTS
        assert same_keys.metadata == {"site": "site-b"}
        mixed = agent_message("site-c", others)
        mixed.agent.sealing_public_key = keys.public.sealing
        assert await reason_of(stub.RegisterAgent(mixed)) == Reason.REASON_SITE_EXISTS

        stored = await service.store(granted=["site-b"])
        lease = await service.issue(stored.credential_id, "site-b")
        await stub.RemoveAgent(pb.RemoveAgentRequest(agent_id="site-b"))
        gone = stub.RemoveAgent(pb.RemoveAgentRequest(agent_id="site-b"))
        assert await reason_of(gone) == Reason.REASON_SITE_NOT_FOUND
        redemption = service.redeem(lease, agent_id="site-b", keys=keys)
        assert await reason_of(redemption) == Reason.REASON_AGENT_UNKNOWN
        assert await reason_of(service.issue(stored.credential_id, "site-b")) == Reason.REASON_AGENT_UNKNOWN

        # The same name with new keys: leases of the former agent did not wait for it.
        await stub.RegisterAgent(agent_message("site-b", others))
        redemption = service.redeem(lease, agent_id="site-b", keys=others)
        assert await reason_of(redemption) == Reason.REASON_LEASE_INVALID
        await stub.RemoveAgent(pb.RemoveAgentRequest(agent_id="site-b"))


@pytest.mark.parametrize(
    "agent",
    [
        pb.Agent(),
        pb.Agent(agent_id="x", signing_public_key=bytes(32)),
        pb.Agent(agent_id="x", signing_public_key=bytes(32), sealing_public_key=bytes(32)),
        pb.Agent(agent_id="X", signing_public_key=bytes(32), sealing_public_key=bytes([9, *bytes(31)])),
    ],
)
async def test_malformed_agents_are_refused(service: Service, agent: pb.Agent):
    async with service.operator() as stub:
        request = stub.RegisterAgent(pb.RegisterAgentRequest(agent=agent))
        assert await reason_of(request) == Reason.REASON_INVALID_REQUEST


async def test_a_tampered_record_is_unreadable_and_rotation_mends_it(service: Service):
    stored = await service.store()
    with service.database() as database:
        database.execute(
            "UPDATE credentials SET ciphertext = CAST(substr(ciphertext, 2) || x'00' AS BLOB)"
            " WHERE credential_id = ?",
            [stored.credential_id],
        )
    error = await failure_of(opened(service, stored.credential_id))
    assert error.reason == Reason.REASON_CREDENTIAL_UNREADABLE
    assert error.metadata == {"credential": stored.credential_id}
    rotation = pb.RotateCredentialRequest(
        credential_id=stored.credential_id, secret=pb.Secret(username=USERNAME, password="new")
    )
    async with service.operator() as stub:
        lost = await failure_of(stub.RotateCredential(rotation))  # where it may be sent is lost, too
        assert lost.reason == Reason.REASON_CREDENTIAL_UNREADABLE
        assert "--address" in lost.remedy
        rotation.secret.endpoint.CopyFrom(ENDPOINT)
        await stub.RotateCredential(rotation)
    assert await opened(service, stored.credential_id) == "new"


async def test_the_secret_of_one_record_does_not_open_in_another(service: Service):
    mine, others = await service.store(), await service.store(password="of another vCenter")
    with service.database() as database:
        database.execute(
            "UPDATE credentials SET (wrapped_key, ciphertext) ="
            " (SELECT wrapped_key, ciphertext FROM credentials WHERE credential_id = ?)"
            " WHERE credential_id = ?",
            [others.credential_id, mine.credential_id],
        )
    with pytest.raises(SendenseError, match="it was altered, or the key is another one"):
        await opened(service, mine.credential_id)


async def test_unknown_ids_are_told_from_malformed_ones(service: Service):
    assert await reason_of(service.issue(str(uuid.uuid4()))) == Reason.REASON_CREDENTIAL_NOT_FOUND
    assert await reason_of(service.issue("1")) == Reason.REASON_INVALID_REQUEST
