# SPDX-License-Identifier: Apache-2.0
"""An agent gets other keys: whoever has the old ones opens nothing from that moment on."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.credentials.rooms import Rooms, opened, secret

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_common import audit_log
from sendense_common.errors import SendenseError, reason_name
from sendense_common.keys import AgentKeys, Redemption, open_sealed
from sendense_credentials.catalog import Catalog, agents, leases
from sendense_credentials.domain.agent import Agent
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.domain.lease import Lease
from sendense_credentials.vault import LeaseVault, create_key_file

pytestmark = pytest.mark.integration

SITE = "site-a"
BACKUP = int(Operation.OPERATION_BACKUP)
OLD, NEW = AgentKeys.generate(), AgentKeys.generate()


@pytest.fixture
async def rooms(tmp_path: Path) -> AsyncIterator[Rooms]:
    create_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as made:
        await register(made, OLD)
        yield made


async def register(rooms: Rooms, keys: AgentKeys) -> tuple[bool, int]:
    agent = Agent(SITE, keys.public)
    return await rooms.catalog.run(
        lambda connection: agents.register(connection, agent, system_clock(), replace=True)
    )


async def stored(rooms: Rooms) -> str:
    return (await rooms.vault.store(str(uuid.uuid4()), "vcenter/a", secret("p"), [SITE])).credential_id


def vault_of(rooms: Rooms) -> LeaseVault:
    return LeaseVault(rooms.catalog, rooms.keys, system_clock)


def asked(credential_id: str, lease_id: str) -> Redemption:
    return Redemption(lease_id, credential_id, SITE, BACKUP, system_clock() * 1000, bytes(16))


async def test_keys_that_are_replaced_between_the_check_of_the_signature_and_the_use_of_the_lease(
    rooms: Rooms, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential_id, lease_id = await stored(rooms), str(uuid.uuid4())
    issued = Lease(lease_id, credential_id, SITE, BACKUP, "job", system_clock() + 60_000_000)
    run, steps = Catalog.run, 0

    async def interrupted(catalog: Catalog, transaction: Callable[[Any], Any]) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:  # the first one has found the keys that the signature was checked with
            with monkeypatch.context() as undone:
                undone.setattr(Catalog, "run", run)
                await register(rooms, NEW)
                await rooms.catalog.run(lambda connection: leases.insert(connection, issued))
        return await run(catalog, transaction)

    monkeypatch.setattr(Catalog, "run", interrupted)
    redemption = asked(credential_id, lease_id)
    with pytest.raises(SendenseError) as refused:
        await vault_of(rooms).redeem(redemption, OLD.sign(redemption.signed_bytes))
    monkeypatch.undo()
    assert steps == 2
    assert refused.value.reason == Reason.REASON_AGENT_KEYS_REPLACED
    # It is still there, for who has the new keys.
    sealed = await vault_of(rooms).redeem(redemption, NEW.sign(redemption.signed_bytes))
    assert open_sealed(sealed, NEW, redemption)


async def test_leases_that_were_issued_to_the_old_keys_end_with_them(rooms: Rooms) -> None:
    credential_id, vault = await stored(rooms), vault_of(rooms)
    lease = await vault.issue(credential_id, SITE, BACKUP, "job")
    assert await register(rooms, NEW) == (True, 1)
    redemption = asked(credential_id, lease.lease_id)
    with pytest.raises(SendenseError) as refused:
        await vault.redeem(redemption, NEW.sign(redemption.signed_bytes))
    assert refused.value.reason == Reason.REASON_AGENT_KEYS_REPLACED
    assert "its agent got new keys" in refused.value.message
    assert await register(rooms, NEW) == (False, 0)


async def test_the_keys_before_open_no_lease_that_was_issued_after_them(rooms: Rooms, tmp_path: Path) -> None:
    credential_id, vault = await stored(rooms), vault_of(rooms)
    await register(rooms, NEW)
    lease = await vault.issue(credential_id, SITE, BACKUP, "job")
    redemption = asked(credential_id, lease.lease_id)
    for keys, reason in (
        (OLD, Reason.REASON_AGENT_KEYS_REPLACED),
        (AgentKeys.generate(), Reason.REASON_SIGNATURE_INVALID),
    ):
        async with audit_log.opened(tmp_path / reason_name(reason), "credentials"):
            with pytest.raises(SendenseError) as refused:
                await vault.redeem(redemption, keys.sign(redemption.signed_bytes))
        assert refused.value.reason == reason
        records = [
            each
            for each in audit_log.read(tmp_path / reason_name(reason))
            if isinstance(each, audit_log.Record)
        ]
        (tried,) = [each for each in records if each.act == "lease.redeem"]
        assert tried.actor == f"unproven:{SITE}", "whoever stole the old keys is not recorded as the agent"
    assert await vault.redeem(redemption, NEW.sign(redemption.signed_bytes))
