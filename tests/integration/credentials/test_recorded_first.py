# SPDX-License-Identifier: Apache-2.0
"""What changes rights is recorded before it counts, and not done when it cannot be recorded."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.audit_log.kit import no_room, records
from tests.integration.credentials.rooms import Rooms, opened, secret

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_common import audit_log
from sendense_common.audit_log import AuditLog
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentKeys
from sendense_credentials.catalog import agents, leases
from sendense_credentials.domain.agent import Agent
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.vault import LeaseVault, create_key_file

pytestmark = pytest.mark.integration


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[AuditLog]:
    async with audit_log.opened(tmp_path / "audit-log", "credentials") as written:
        yield written


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    create_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as made:
        yield made


async def test_a_lease_ends_with_a_record_or_not_at_all(rooms: Rooms, log: AuditLog) -> None:
    agent = Agent("site-a", AgentKeys.generate().public)
    await rooms.catalog.run(lambda connection: agents.register(connection, agent, 1))
    stored = await rooms.vault.store(str(uuid.uuid4()), "vcenter/a", secret("p"), ["site-a"])
    vault = LeaseVault(rooms.catalog, rooms.keys, system_clock)
    lease = await vault.issue(stored.credential_id, "site-a", Operation.OPERATION_BACKUP, "job")

    with no_room(), pytest.raises(SendenseError) as refused:
        await vault.revoke(lease.lease_id)
    assert refused.value.reason == Reason.REASON_AUDIT_LOG_UNAVAILABLE
    kept = await rooms.catalog.run(lambda connection: leases.find(connection, lease.lease_id))
    assert kept is not None
    assert kept.end_time_us is None

    for _ in range(2):
        await vault.revoke(lease.lease_id)
    assert [(each.subject, each.actor) for each in records(log, "lease.end")] == [(lease.lease_id, "hub")]


async def test_a_secret_goes_under_another_key_with_a_record_or_not_at_all(
    rooms: Rooms, log: AuditLog
) -> None:
    stored = {await rooms.store(name) for name in ("one", "two")}
    (first,) = await rooms.key_ids()
    second, _ = await rooms.key_vault.rotate()

    with no_room(), pytest.raises(SendenseError) as refused:
        await rooms.rewrapping.once()
    assert refused.value.reason == Reason.REASON_AUDIT_LOG_UNAVAILABLE
    assert await rooms.key_ids() == {first}

    assert await rooms.rewrapping.once() == 2
    recorded = records(log, "key.rewrap")
    assert {each.facts["credential_id"] for each in recorded} == stored
    assert [(each.subject, each.facts["before"]) for each in recorded] == [(second, first)] * 2
