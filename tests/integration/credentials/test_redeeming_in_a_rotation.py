# SPDX-License-Identifier: Apache-2.0
"""A lease is redeemed while the key-encryption key is rotated."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from tests.integration.credentials.rooms import opened, secret

from sendense.credentials.v1.operation_pb2 import Operation
from sendense_common.keys import NONCE_BYTES, AgentKeys, Redemption, open_sealed
from sendense_credentials.catalog import agents
from sendense_credentials.domain.agent import Agent
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.vault import Keyring, LeaseVault, create_key_file

pytestmark = pytest.mark.integration


async def test_a_key_that_is_rotated_and_dropped_in_the_middle_of_a_redemption_keeps_nothing_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    agent, operation = AgentKeys.generate(), int(Operation.OPERATION_BACKUP)
    create_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as rooms:
        known = Agent("site-a", agent.public)
        await rooms.catalog.run(lambda connection: agents.register(connection, known, system_clock()))
        stored = await rooms.vault.store(str(uuid.uuid4()), "vcenter/a", secret("p"), ["site-a"])
        vault = LeaseVault(rooms.catalog, rooms.keys, system_clock)
        lease = await vault.issue(stored.credential_id, "site-a", operation, "job")
        unwrap, first = Keyring.unwrap, stored.envelope.key_id

        async def rotated_before(keys: Keyring, *arguments: Any) -> bytes:
            """The lease is used up by now, and the record was read."""
            monkeypatch.setattr(Keyring, "unwrap", unwrap)
            await rooms.key_vault.rotate()
            await rooms.rewrapping.once()
            await rooms.key_vault.drop(first)
            return await unwrap(keys, *arguments)

        monkeypatch.setattr(Keyring, "unwrap", rotated_before)
        now_ns = system_clock() * 1000
        redemption = Redemption(
            lease.lease_id, stored.credential_id, "site-a", operation, now_ns, bytes(NONCE_BYTES)
        )
        sealed = await vault.redeem(redemption, agent.sign(redemption.signed_bytes))
        assert open_sealed(sealed, agent, redemption)
        assert first not in {key.key_id for key in await rooms.keys.active.keys()}
