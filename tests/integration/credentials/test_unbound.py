# SPDX-License-Identifier: Apache-2.0
"""A password that was stored before passwords were bound to a vCenter: it is bound, or gets no successor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.integration.credentials.rooms import SOMEWHERE, Rooms, opened, secret

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_credentials.catalog import credentials
from sendense_credentials.domain.secret import Secret
from sendense_credentials.vault import create_key_file
from sendense_credentials.vault.envelope import enclose
from sendense_credentials.vault.plaintext import to_plaintext

pytestmark = pytest.mark.integration


async def as_of_before(rooms: Rooms, *, bound_to: str = "") -> str:
    """A record whose secret names no endpoint."""
    credential_id = await rooms.store("vcenter/old")
    (stored,) = await rooms.vault.listed()
    envelope = await enclose(
        to_plaintext(Secret("user", "old", None)), credential_id, stored.version, rooms.keys
    )
    changed = dataclasses.replace(stored, envelope=envelope, bound_to=bound_to)
    await rooms.catalog.run(lambda connection: credentials.update(connection, changed))
    return credential_id


@pytest.mark.parametrize("bound_to", ["", "vc.example.net:443"], ids=["as it was", "with a false column"])
async def test_a_new_password_without_an_endpoint_is_refused_and_the_old_one_stays(
    tmp_path: Path, bound_to: str
):
    create_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as rooms:
        credential_id = await as_of_before(rooms, bound_to=bound_to)
        before = await rooms.texts()
        with pytest.raises(SendenseError) as refused:
            await rooms.vault.rotate(credential_id, Secret("user", "new", None))
        assert refused.value.reason == Reason.REASON_INVALID_REQUEST
        assert refused.value.metadata["field"] == "secret.endpoint"
        assert (
            "`sendense vcenter password old --username USER --password-file FILE --address HOST"
            in refused.value.remedy
        )
        assert await rooms.texts() == before


async def test_a_new_password_with_an_endpoint_binds_it(tmp_path: Path):
    create_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as rooms:
        credential_id = await as_of_before(rooms)
        after = await rooms.vault.rotate(credential_id, secret("new"))
        assert after.bound_to == str(SOMEWHERE)
        assert await rooms.texts() == [to_plaintext(secret("new"))]


async def test_the_old_password_is_bound_and_then_changes_without_an_endpoint(tmp_path: Path):
    create_key_file(tmp_path / "kek.json")
    async with opened(tmp_path) as rooms:
        credential_id = await as_of_before(rooms)
        with pytest.raises(SendenseError, match="bound to no vCenter") as refused:
            await rooms.vault.bind(credential_id, host=SOMEWHERE.host, port=SOMEWHERE.port)
        assert "`sendense vcenter change old --address HOST --ca-file FILE`" in refused.value.remedy
        await rooms.vault.bind(credential_id, **dataclasses.asdict(SOMEWHERE))
        after = await rooms.vault.rotate(credential_id, Secret("user", "new", None))
        assert after.bound_to == str(SOMEWHERE)
