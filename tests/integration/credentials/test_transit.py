# SPDX-License-Identifier: Apache-2.0
"""Keys in a real OpenBao: what happens when it is away, when it refuses, and when tokens end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.credentials.openbao import KEY, OpenBao, openbao, private
from tests.integration.credentials.rooms import opened, secret

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_credentials.catalog import credentials
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.domain.key import KeyState
from sendense_credentials.vault import Keyring, create_key_file, load_key_file, transit_keys, transit_session
from sendense_credentials.vault.identity import Record
from sendense_credentials.vault.key_provider import WrappedKey
from sendense_credentials.vault.transit_keys import TransitKeys, open_transit
from sendense_credentials.vault.transit_session import TransitOptions
from sendense_lab.vcenter.certificates import make_certificates

pytestmark = pytest.mark.integration

UNAVAILABLE = Reason.REASON_KEY_PROVIDER_UNAVAILABLE
FORBIDDEN = Reason.REASON_KEY_PROVIDER_FORBIDDEN


@contextlib.asynccontextmanager
async def transit(server: OpenBao, directory: Path, **changes: Any) -> AsyncIterator[TransitKeys]:
    """The provider with a token of its own, unless the changes say how it gets in."""
    if not {"token_file", "role_id_file"} & {*changes}:
        changes["token_file"] = directory / "token"
        server.token(directory / "token")
    options = {"address": server.address, "ca_file": server.ca_file, **changes}
    async with open_transit(TransitOptions(**options), system_clock) as keys:
        yield keys


async def refusal(keys: TransitKeys) -> SendenseError:
    """How a wrap fails."""
    with pytest.raises(SendenseError) as refused:
        await keys.wrap(bytes(32), Record("c", 1))
    assert refused.value.remedy
    return refused.value


async def works(keys: TransitKeys) -> bool:
    record = Record("c", 1)
    return await keys.unwrap(await keys.wrap(bytes(32), record), record) == bytes(32)


async def test_passwords_move_from_the_file_to_transit_and_back(openbao_server: OpenBao, tmp_path: Path):
    create_key_file(tmp_path / "kek.json")
    local = load_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as rooms:
        for number in range(3):
            await rooms.store(f"vc-{number}")
        texts = await rooms.texts()
    async with transit(openbao_server, tmp_path) as keys:
        async with opened(tmp_path, Keyring(keys, [local])) as rooms:
            assert await rooms.texts() == texts, "readable before anything was done"
            report = await rooms.key_vault.report()
            assert (report.pending_count, report.unreadable_count) == (3, 0)
            assert await rooms.rewrapping.once() == 3
            assert await rooms.key_ids() == {await keys.active_key_id()}
            last = (await rooms.key_vault.report()).uses[-1]
            assert (last.key.key_id, last.state) == (await local.active_key_id(), KeyState.RETIRED)
        async with opened(tmp_path, Keyring(keys)) as rooms:
            assert await rooms.texts() == texts, "the file is not needed any more"
        async with opened(tmp_path, Keyring(local)) as rooms:
            report = await rooms.key_vault.report()
            assert report.unreadable_count == 3
            assert report.uses[-1].state is KeyState.MISSING
            with pytest.raises(SendenseError, match="of a provider that is not configured"):
                await rooms.texts()
        async with opened(tmp_path, Keyring(local, [keys])) as rooms:
            assert await rooms.rewrapping.once() == 3
        async with opened(tmp_path) as rooms:
            assert await rooms.texts() == texts


async def test_a_rotation_at_the_server_is_followed_and_one_here_is_one_there(
    openbao_server: OpenBao, tmp_path: Path
):
    async with transit(openbao_server, tmp_path) as keys, opened(tmp_path, Keyring(keys)) as rooms:
        await rooms.store("vc")
        before = await keys.active_key_id()
        openbao_server.admin.secrets.transit.rotate_key(KEY)
        assert await rooms.rewrapping.once() == 1
        (after,) = await rooms.key_ids()
        assert int(after.rpartition("v")[2]) == int(before.rpartition("v")[2]) + 1
        made, new = await rooms.key_vault.rotate()
        assert new
        assert await rooms.rewrapping.once() == 1
        assert await rooms.key_ids() == {made}
        latest = openbao_server.admin.secrets.transit.read_key(KEY)["data"]["latest_version"]
        assert made == f"transit:transit/{KEY}:v{latest}"
        assert len(await rooms.texts()) == 1


async def test_a_server_that_goes_away_and_comes_back_needs_no_restart_here(tmp_path: Path):
    with openbao(tmp_path / "bao") as server:
        async with transit(server, tmp_path) as keys, opened(tmp_path, Keyring(keys)) as rooms:
            await rooms.store("vc")
            await rooms.key_vault.rotate()
            await asyncio.to_thread(server.stop)
            for work in (rooms.texts, rooms.key_vault.rotate, rooms.rewrapping.once):
                with pytest.raises(SendenseError, match=f"{server.address} does not answer") as refused:
                    await work()
                assert refused.value.reason == UNAVAILABLE
                assert refused.value.retryable
            with pytest.raises(SendenseError, match="does not answer"):
                await rooms.store("another")
            report = await rooms.key_vault.report()
            assert report.failure is not None
            assert report.pending_count == 0, "which key is active is not known"
            assert (report.active_key_id, [each.state for each in report.uses]) == ("", [KeyState.UNKNOWN])
            assert await rooms.vault.report_unreadable() == 0, "nothing is concluded from that"
            await asyncio.to_thread(server.start)
            assert len(await rooms.texts()) == 1
            assert await rooms.rewrapping.once() == 1
            assert await rooms.key_ids() == {await keys.active_key_id()}
            await asyncio.to_thread(server.admin.sys.seal)
            error = await refusal(keys)
            assert error.reason == UNAVAILABLE
            assert "is sealed" in error.message


async def test_a_server_that_does_not_answer_is_not_waited_for(
    openbao_server: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transit_session, "_TIMEOUT_S", 0.3)
    async with transit(openbao_server, tmp_path) as keys:
        assert await works(keys)
        with openbao_server.frozen():
            assert (await refusal(keys)).reason == UNAVAILABLE
            monkeypatch.setattr(transit_keys, "_WITHIN_S", 0.05)
            assert "does not answer within" in (await refusal(keys)).message
        monkeypatch.undo()
        assert await works(keys)


async def test_a_token_that_was_revoked_is_told_and_a_new_one_in_its_file_is_taken(
    openbao_server: OpenBao, tmp_path: Path
):
    async with transit(openbao_server, tmp_path) as keys:
        assert await works(keys)
        openbao_server.admin.auth.token.revoke((tmp_path / "token").read_text().strip())
        error = await refusal(keys)
        assert error.reason == FORBIDDEN
        assert f"the token in {tmp_path / 'token'}: it has expired or was revoked" in error.message
        openbao_server.token(tmp_path / "token")
        assert await works(keys)


async def test_a_right_that_is_missing_is_named(openbao_server: OpenBao, tmp_path: Path):
    less = openbao_server.rights().replace("transit/encrypt/", "transit/nothing/")
    openbao_server.admin.sys.create_or_update_policy("less", less)
    openbao_server.token(tmp_path / "token", policy="less")
    async with transit(openbao_server, tmp_path, token_file=tmp_path / "token") as keys:
        error = await refusal(keys)
        assert error.reason == FORBIDDEN
        assert f"the token may not update transit/encrypt/{KEY}" in error.message


@pytest.mark.parametrize("content", [None, "", "two\nlines"], ids=["missing", "empty", "two lines"])
async def test_a_file_without_a_token_is_told(openbao_server: OpenBao, tmp_path: Path, content: str | None):
    if content is not None:
        private(tmp_path / "t", content)
    async with transit(openbao_server, tmp_path, token_file=tmp_path / "t") as keys:
        error = await refusal(keys)
        assert error.reason == FORBIDDEN
        assert str(tmp_path / "t") in error.message
        openbao_server.token(tmp_path / "t")
        assert await works(keys)


async def test_a_renewable_token_is_renewed_and_the_end_of_another_one_is_known(
    openbao_server: OpenBao, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transit_keys, "_LOOK_AFTER_TOKEN_EVERY_S", 0.1)
    token = openbao_server.token(tmp_path / "token", ttl="4s", renewable=True)
    async with transit(openbao_server, tmp_path, token_file=tmp_path / "token") as keys:
        assert await works(keys)
        assert keys.token_end_us is None
        await asyncio.sleep(5)  # past its first end
        assert openbao_server.admin.auth.token.lookup(token)["data"]["last_renewal"]
        assert await works(keys)
    openbao_server.token(tmp_path / "token", ttl="1h", renewable=False)
    async with transit(openbao_server, tmp_path, token_file=tmp_path / "token") as keys:
        assert await works(keys)
        assert keys.token_end_us is not None
        assert 3000 < keys.token_end_us / 1e6 - system_clock() / 1e6 <= 3600


async def test_an_approle_logs_in_as_often_as_it_has_to(openbao_server: OpenBao, tmp_path: Path):
    openbao_server.role(tmp_path, token_ttl="1s")
    role = {"role_id_file": tmp_path / "role-id", "secret_id_file": tmp_path / "secret-id"}
    async with transit(openbao_server, tmp_path, **role) as keys:
        assert await works(keys)
        await asyncio.sleep(1.2)
        assert await works(keys)
        private(tmp_path / "secret-id", "3f0b7d5e-0000-4000-8000-000000000001")
        await asyncio.sleep(1.2)
        error = await refusal(keys)
        assert error.reason == FORBIDDEN
        assert "refuses the login with the AppRole" in error.message
        assert "3f0b7d5e" not in str(vars(error))
        openbao_server.secret_id(tmp_path)
        assert await works(keys)


async def test_a_certificate_of_another_authority_is_refused(openbao_server: OpenBao, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other, _, _ = make_certificates(tmp_path / "other")
    async with transit(openbao_server, tmp_path, ca_file=other) as keys:
        error = await refusal(keys)
        assert error.reason == UNAVAILABLE
        assert "certificate" in error.message
        assert str(other) in error.remedy


async def test_a_key_that_is_not_there_is_named_with_the_command_that_makes_it(
    openbao_server: OpenBao, tmp_path: Path
):
    openbao_server.admin.sys.create_or_update_policy("nokey", openbao_server.rights("nokey"))
    openbao_server.token(tmp_path / "token", policy="nokey")
    async with transit(openbao_server, tmp_path, key="nokey", token_file=tmp_path / "token") as keys:
        error = await refusal(keys)
        assert error.reason == Reason.REASON_KEY_NOT_FOUND
        assert "bao write -f transit/keys/nokey" in error.remedy


async def test_a_key_that_cannot_bind_is_refused(openbao_server: OpenBao, tmp_path: Path):
    openbao_server.admin.secrets.transit.create_key("rsa", key_type="rsa-2048")
    openbao_server.admin.sys.create_or_update_policy("rsa", openbao_server.rights("rsa"))
    openbao_server.token(tmp_path / "token", policy="rsa")
    async with transit(openbao_server, tmp_path, key="rsa", token_file=tmp_path / "token") as keys:
        error = await refusal(keys)
        assert error.reason == FORBIDDEN
        assert "type rsa-2048" in error.message


async def test_the_database_alone_is_useless_and_has_no_data_key(openbao_server: OpenBao, tmp_path: Path):
    async with transit(openbao_server, tmp_path) as keys, opened(tmp_path, Keyring(keys)) as rooms:
        await rooms.vault.store("3f0b7d5e-0000-4000-8000-000000000001", "vc", secret("a password"), [])
        (found,) = await rooms.catalog.run(credentials.listed)
        data_key = await keys.unwrap(
            WrappedKey(found.envelope.key_id, found.envelope.wrapped_key),
            Record(found.credential_id, 1),
        )
        left = b"".join(file.read_bytes() for file in tmp_path.glob("credentials.sqlite*"))
        assert found.envelope.wrapped_key in left
        assert data_key not in left
        assert b"a password" not in left
