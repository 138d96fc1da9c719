# SPDX-License-Identifier: Apache-2.0
"""Leases and their redemption, through the real process's sockets."""

from __future__ import annotations

import asyncio
import time
import uuid

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tests.integration.credentials.kit import BACKUP, PASSWORD, Service, failure_of, reason_of

import sendense.credentials.v1.lease_service_pb2 as hub_pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense.credentials.v1.redemption_service_pb2 import RedeemLeaseRequest
from sendense.credentials.v1.redemption_service_pb2_grpc import RedemptionServiceStub
from sendense_agent.clients.credentials import Login
from sendense_common import rpc
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentKeys, Redemption, open_sealed

pytestmark = pytest.mark.integration


@pytest.fixture
async def credential_id(service: Service) -> str:
    return (await service.store()).credential_id


@pytest.fixture
async def lease(service: Service, credential_id: str) -> str:
    return await service.issue(credential_id)


def signed(service: Service, lease: str, /, *, signed_ago_s: float = 0, **changes) -> RedeemLeaseRequest:
    """A request that is right, changed after it was signed."""
    time_ns = time.time_ns() - int(signed_ago_s * 1e9)
    credential_id = service.issued[lease]
    redemption = Redemption(lease, credential_id, "site-a", BACKUP, time_ns, bytes(range(16)))
    sign_time = Timestamp()
    sign_time.FromNanoseconds(time_ns)
    fields = {
        "lease_id": lease,
        "credential_id": credential_id,
        "agent_id": "site-a",
        "operation": BACKUP,
        "sign_time": sign_time,
        "nonce": redemption.nonce,
        "signature": service.agent.sign(redemption.signed_bytes),
    }
    return RedeemLeaseRequest(**{**fields, **changes})


async def send(service: Service, request: RedeemLeaseRequest) -> bytes:
    async with rpc.connect(service.paths.agents_socket) as channel:
        return (await RedemptionServiceStub(channel).RedeemLease(request, timeout=10)).sealed_secret


async def test_a_lease_opens_its_credential_once(service: Service, lease: str):
    assert (await service.redeem(lease)).password == PASSWORD
    again = await failure_of(service.redeem(lease))
    assert again.reason == Reason.REASON_LEASE_USED
    assert again.message == f"lease {lease} was used already"
    assert not again.retryable


async def test_a_request_of_more_than_a_mebibyte_is_refused(service: Service, lease: str):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(service, signed(service, lease, agent_id="x" * (1 << 20)))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_very_same_request_is_not_answered_twice(service: Service, lease: str):
    request = signed(service, lease)
    assert await send(service, request)
    assert await reason_of(send(service, request)) == Reason.REASON_LEASE_USED


async def test_of_many_redemptions_at_once_exactly_one_wins(service: Service, credential_id: str):
    for _ in range(5):
        lease = await service.issue(credential_id)
        answers = await asyncio.gather(*(service.redeem(lease) for _ in range(8)), return_exceptions=True)
        won = [answer for answer in answers if isinstance(answer, Login)]
        lost = [answer.reason for answer in answers if isinstance(answer, SendenseError)]
        assert len(won) == 1
        assert lost == [Reason.REASON_LEASE_USED] * 7


async def test_a_lease_is_for_one_operation(service: Service, credential_id: str):
    lease = await service.issue(credential_id, operation=Operation.OPERATION_TEST)
    for operation in (
        Operation.OPERATION_BACKUP,
        Operation.OPERATION_INVENTORY,
        Operation.OPERATION_CLEAN_UP,
    ):
        assert await reason_of(service.redeem(lease, operation=operation)) == Reason.REASON_LEASE_INVALID
    # Refused requests have not used it up.
    assert (await service.redeem(lease, operation=Operation.OPERATION_TEST)).password == PASSWORD


async def test_a_lease_is_for_one_agent(service: Service, lease: str):
    foreigner = AgentKeys.generate()
    await service.register("site-x", foreigner)
    as_itself = await failure_of(service.redeem(lease, agent_id="site-x", keys=foreigner))
    assert as_itself.reason == Reason.REASON_LEASE_INVALID
    assert "does not exist, or not for agent site-x" in as_itself.message
    as_another = service.redeem(lease, agent_id="site-a", keys=foreigner)
    assert await reason_of(as_another) == Reason.REASON_SIGNATURE_INVALID
    unknown = service.redeem(lease, agent_id="site-y", keys=foreigner)
    assert await reason_of(unknown) == Reason.REASON_AGENT_UNKNOWN
    assert (await service.redeem(lease)).password == PASSWORD


async def test_a_lease_that_was_never_issued(service: Service):
    assert await reason_of(service.redeem(str(uuid.uuid4()))) == Reason.REASON_LEASE_INVALID


async def test_an_expired_lease_is_refused_as_expired(service: Service, lease: str):
    with service.database() as database:
        database.execute(
            "UPDATE leases SET expire_time_us = ? WHERE lease_id = ?", [time.time_ns() // 1000 - 1, lease]
        )
    assert await reason_of(service.redeem(lease)) == Reason.REASON_LEASE_EXPIRED


async def test_leases_end_after_minutes_and_are_forgotten_a_day_later(service: Service, credential_id: str):
    request = hub_pb.IssueLeaseRequest(credential_id=credential_id, agent_id="site-a", operation=BACKUP)
    async with service.hub() as stub:
        answer = await stub.IssueLease(request)
    lifetime_s = answer.expire_time.ToMicroseconds() / 1e6 - time.time()
    assert 60 < lifetime_s <= 300
    with service.database() as database:
        day_us = 24 * 3600 * 1_000_000
        database.execute(
            "UPDATE leases SET expire_time_us = ? WHERE lease_id = ?",
            [time.time_ns() // 1000 - day_us, answer.lease_id],
        )
    service.issued[answer.lease_id] = credential_id
    assert await reason_of(service.redeem(answer.lease_id)) == Reason.REASON_LEASE_EXPIRED
    await service.issue(credential_id)
    assert await reason_of(service.redeem(answer.lease_id)) == Reason.REASON_LEASE_INVALID


async def test_a_revoked_lease_opens_nothing(service: Service, lease: str):
    async with service.hub() as stub:
        for _ in range(2):
            await stub.RevokeLease(hub_pb.RevokeLeaseRequest(lease_id=lease))
        await stub.RevokeLease(hub_pb.RevokeLeaseRequest(lease_id=str(uuid.uuid4())))
    refused = await failure_of(service.redeem(lease))
    assert refused.reason == Reason.REASON_LEASE_REVOKED
    assert "the hub gave it back" in refused.message


async def test_a_lease_opens_only_the_credential_that_the_hub_named_to_the_agent(
    service: Service, lease: str
):
    other = (await service.store()).credential_id
    refused = await failure_of(service.redeem(lease, credential_id=other))
    assert refused.reason == Reason.REASON_LEASE_INVALID
    assert f"was not issued for credential {other}" in refused.message
    assert (await service.redeem(lease)).password == PASSWORD


async def test_an_agent_that_names_no_credential_is_told_to_be_upgraded(service: Service, lease: str):
    error = await failure_of(send(service, signed(service, lease, credential_id="")))
    assert error.reason == Reason.REASON_VERSION_NOT_SUPPORTED
    assert "Upgrade the agent" in error.remedy


def other_time() -> Timestamp:
    """A minute ago: near enough, but not what was signed."""
    return Timestamp(seconds=int(time.time()) - 60)


@pytest.mark.parametrize(
    "change",
    [
        {"lease_id": str(uuid.uuid4())},
        {"credential_id": str(uuid.uuid4())},
        {"operation": Operation.OPERATION_INVENTORY},
        {"sign_time": other_time},
        {"nonce": bytes(16)},
        {"signature": bytes(64)},
        {"signature": b""},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_request_that_was_altered_on_the_way_is_refused(service: Service, lease: str, change):
    made = {name: value() if callable(value) else value for name, value in change.items()}
    altered = await reason_of(send(service, signed(service, lease, **made)))
    assert altered == Reason.REASON_SIGNATURE_INVALID
    assert await send(service, signed(service, lease))  # and has not used up the lease


@pytest.mark.parametrize("signed_ago_s", [310, -310])
async def test_a_request_signed_at_another_time_is_refused(service: Service, lease: str, signed_ago_s):
    error = await failure_of(send(service, signed(service, lease, signed_ago_s=signed_ago_s)))
    assert error.reason == Reason.REASON_CLOCKS_DIFFER
    assert ("behind" if signed_ago_s > 0 else "ahead of") in error.message
    assert "NTP" in error.remedy


@pytest.mark.parametrize(
    "change",
    [
        {"lease_id": "1"},
        {"credential_id": "1"},
        {"agent_id": "../x"},
        {"operation": 0},
        {"operation": 77},
        {"nonce": bytes(15)},
        {"sign_time": None},
        {"sign_time": Timestamp(seconds=2**62)},
    ],
)
async def test_malformed_redemptions_are_refused(service: Service, lease: str, change):
    error = await failure_of(send(service, signed(service, lease, **change)))
    assert error.reason == Reason.REASON_INVALID_REQUEST
    assert error.metadata["field"] == next(iter(change))


async def test_the_hub_that_carries_the_answer_cannot_use_it(service: Service, credential_id: str):
    first, second = await service.issue(credential_id), await service.issue(credential_id)
    sealed = await send(service, signed(service, first))
    assert PASSWORD.encode() not in sealed
    nonce = bytes(range(16))
    mine = Redemption(first, credential_id, "site-a", BACKUP, 0, nonce)
    assert PASSWORD.encode() in open_sealed(sealed, service.agent, mine)
    for other in (
        Redemption(second, credential_id, "site-a", BACKUP, 0, nonce),
        Redemption(first, second, "site-a", BACKUP, 0, nonce),
        Redemption(first, credential_id, "site-b", BACKUP, 0, nonce),
        Redemption(first, credential_id, "site-a", Operation.OPERATION_TEST, 0, nonce),
        Redemption(first, credential_id, "site-a", BACKUP, 0, bytes(16)),
    ):
        with pytest.raises(SendenseError, match="was altered, or not sealed"):
            open_sealed(sealed, service.agent, other)


@pytest.mark.parametrize(
    "change",
    [{"operation": 0}, {"operation": 9}, {"agent_id": ""}, {"subject_id": "a\nb"}, {"subject_id": "x" * 129}],
    ids=str,
)
async def test_malformed_lease_requests_are_refused(service: Service, credential_id: str, change):
    fields = {"credential_id": credential_id, "agent_id": "site-a", "operation": BACKUP, **change}
    async with service.hub() as stub:
        error = await failure_of(stub.IssueLease(hub_pb.IssueLeaseRequest(**fields)))
    assert error.reason == Reason.REASON_INVALID_REQUEST
    assert error.metadata["field"] == next(iter(change))


async def test_an_agent_without_a_way_to_the_service_gets_a_clear_error(service: Service, short_tmp):
    service_gone = Service(type(service.paths)(short_tmp, short_tmp), service.process, service.log)
    error = await failure_of(service_gone.redeem(str(uuid.uuid4()), timeout_s=2))
    assert error.reason == Reason.REASON_TUNNEL_LOST
    assert "a lease was redeemed" in error.message
