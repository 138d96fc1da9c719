# SPDX-License-Identifier: Apache-2.0
"""What every provider of keys does: the local file, and transit of a real OpenBao with both kinds of key."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.credentials.openbao import KEY, OpenBao

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.vault import create_key_file, load_key_file
from sendense_credentials.vault.identity import Record
from sendense_credentials.vault.key_provider import KeyProvider, WrappedKey
from sendense_credentials.vault.transit_keys import open_transit
from sendense_credentials.vault.transit_session import TransitOptions

pytestmark = pytest.mark.integration

RECORD = Record("3f0b7d5e-0000-4000-8000-000000000001", 1)
DATA_KEY = bytes(range(32))


@pytest.fixture(params=["local", "transit, derived", "transit, not derived"])
async def provider(
    request: pytest.FixtureRequest, openbao_server: OpenBao, tmp_path: Path
) -> AsyncIterator[KeyProvider]:
    if request.param == "local":
        create_key_file(tmp_path / "kek.json")
        yield load_key_file(tmp_path / "kek.json")
        return
    server, name = openbao_server, f"{KEY}-{uuid.uuid4()}"
    server.admin.secrets.transit.create_key(name, derived=request.param == "transit, derived")
    server.admin.sys.create_or_update_policy(name, server.rights(name))
    server.token(tmp_path / "token", policy=name)
    options = TransitOptions(server.address, server.ca_file, key=name, token_file=tmp_path / "token")
    async with open_transit(options, system_clock) as keys:
        yield keys


async def unreadable(provider: KeyProvider, wrapped: WrappedKey, record: Record = RECORD) -> SendenseError:
    with pytest.raises(SendenseError) as refused:
        await provider.unwrap(wrapped, record)
    assert refused.value.reason == Reason.REASON_CREDENTIAL_UNREADABLE
    assert refused.value.remedy
    with pytest.raises(SendenseError) as refused:
        await provider.rewrap(wrapped, record)
    assert refused.value.reason == Reason.REASON_CREDENTIAL_UNREADABLE
    return refused.value


async def test_a_data_key_opens_for_its_own_record_only(provider: KeyProvider):
    wrapped = await provider.wrap(DATA_KEY, RECORD)
    assert wrapped.key_id == await provider.active_key_id()
    assert provider.owns(wrapped.key_id)
    assert not provider.owns("another:key")
    assert await provider.unwrap(wrapped, RECORD) == DATA_KEY
    assert DATA_KEY not in wrapped.data
    assert repr(wrapped.data) not in repr(wrapped)
    await unreadable(provider, wrapped, Record(RECORD.credential_id, 2))
    await unreadable(provider, wrapped, Record(str(uuid.uuid4()), 1))


async def test_what_was_altered_does_not_open(provider: KeyProvider):
    wrapped = await provider.wrap(DATA_KEY, RECORD)
    middle = len(wrapped.data) // 2
    flipped = bytearray(wrapped.data)
    flipped[middle] ^= 1
    for data in (bytes(flipped), wrapped.data[:middle], b"", b"\xff" * 60, b"vault:v1:"):
        await unreadable(provider, WrappedKey(wrapped.key_id, data))


async def test_a_new_key_is_active_and_the_former_one_still_opens(provider: KeyProvider):
    first = await provider.wrap(DATA_KEY, RECORD)
    made = await provider.add_key()
    assert made != first.key_id
    assert await provider.active_key_id() == made
    assert [key.key_id for key in await provider.keys()] == [made, first.key_id]
    assert all(key.create_time_us for key in await provider.keys())
    assert await provider.unwrap(first, RECORD) == DATA_KEY
    second = await provider.rewrap(first, RECORD)
    assert second.key_id == made
    assert await provider.unwrap(second, RECORD) == DATA_KEY


async def test_under_a_key_that_is_gone_nothing_opens(
    provider: KeyProvider, openbao_server: OpenBao, monkeypatch: pytest.MonkeyPatch
):
    first = await provider.wrap(DATA_KEY, RECORD)
    made = await provider.add_key()
    if provider.kind == "local":
        await provider.drop_key(first.key_id)
    else:
        with pytest.raises(SendenseError, match="dropped at its server") as refused:
            await provider.drop_key(first.key_id)
        assert "min_decryption_version=2" in refused.value.remedy
        name = made.removeprefix("transit:transit/").removesuffix(":v2")
        openbao_server.admin.secrets.transit.update_key_configuration(name, min_decryption_version=2)
    assert [key.key_id for key in await provider.keys()] == [made]
    assert first.key_id in str(await unreadable(provider, first))
