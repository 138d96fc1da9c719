# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.private_file import create_private_file
from sendense_credentials.domain.credential import Envelope
from sendense_credentials.vault import LocalKeys, create_key_file, envelope, load_key_file
from sendense_credentials.vault.key_file import KeyFile

pytestmark = pytest.mark.unit


def local(active: str, keys: dict[str, bytes]) -> LocalKeys:
    return LocalKeys(Path("/nowhere"), KeyFile(active, keys, {}))


def enclose(plaintext: bytes, credential_id: str, version: int, keys: LocalKeys) -> Envelope:
    return asyncio.run(envelope.enclose(plaintext, credential_id, version, keys))


def disclose(made: Envelope, credential_id: str, version: int, keys: LocalKeys) -> bytes:
    return asyncio.run(envelope.disclose(made, credential_id, version, keys))


def rewrapped(made: Envelope, keys: LocalKeys) -> Envelope:
    return asyncio.run(envelope.rewrapped(made, ID, 1, keys))


KEYS = local("kek-1", {"kek-1": bytes(range(32))})
ID = "3f0b7d5e-0000-4000-8000-000000000001"


@given(st.binary(min_size=8, max_size=5000), st.integers(1, 2**31))
def test_a_secret_comes_out_of_its_envelope_as_it_went_in(plaintext, version):
    made = enclose(plaintext, ID, version, KEYS)
    assert disclose(made, ID, version, KEYS) == plaintext
    assert plaintext not in made.ciphertext


def test_two_envelopes_of_one_secret_share_nothing():
    one, two = enclose(b"secret", ID, 1, KEYS), enclose(b"secret", ID, 1, KEYS)
    assert one.ciphertext != two.ciphertext
    assert one.wrapped_key != two.wrapped_key


def unreadable(made: Envelope, credential_id: str = ID, version: int = 1, keys: LocalKeys = KEYS) -> str:
    with pytest.raises(SendenseError) as refused:
        disclose(made, credential_id, version, keys)
    assert refused.value.reason == Reason.REASON_CREDENTIAL_UNREADABLE
    assert refused.value.remedy
    return refused.value.message


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


ENVELOPE = enclose(b"a secret", ID, 1, KEYS)


@pytest.mark.parametrize("part", ["wrapped_key", "ciphertext"])
@pytest.mark.parametrize("position", [0, 11, 12, 19, -17, -16, -1], ids=lambda position: f"byte{position}")
def test_ff20_a_flipped_byte_of_nonce_text_or_tag_is_noticed(part, position):
    data = getattr(ENVELOPE, part)
    change: dict[str, Any] = {part: flipped(data, position % len(data))}
    unreadable(dataclasses.replace(ENVELOPE, **change))


@pytest.mark.parametrize("part", ["wrapped_key", "ciphertext"])
@pytest.mark.parametrize("length", [0, 5, 12, 13, 27])
def test_ff20_a_cut_off_record_is_noticed(part, length):
    change: dict[str, Any] = {part: getattr(ENVELOPE, part)[:length]}
    unreadable(dataclasses.replace(ENVELOPE, **change))


def test_an_envelope_belongs_to_one_version_of_one_credential():
    unreadable(ENVELOPE, credential_id=ID.replace("1", "2"))
    unreadable(ENVELOPE, version=2)


def test_the_parts_of_two_envelopes_do_not_mix():
    other = enclose(b"another", ID, 1, KEYS)
    unreadable(dataclasses.replace(ENVELOPE, wrapped_key=other.wrapped_key))
    # A wrapped data key in the place of a ciphertext under the same key, and the other way round.
    unreadable(Envelope("kek-1", ENVELOPE.ciphertext, ENVELOPE.wrapped_key, "kek-1"))


def test_the_key_id_is_part_of_the_identity():
    both = local("kek-1", {"kek-1": bytes(range(32)), "kek-2": bytes(range(32))})
    unreadable(dataclasses.replace(ENVELOPE, key_id="kek-2"), keys=both)


def test_ff20_without_its_key_an_envelope_is_useless():
    assert "kek-1 is not in the key file" in unreadable(ENVELOPE, keys=local("kek-2", {"kek-2": bytes(32)}))
    assert "key is another one" in unreadable(ENVELOPE, keys=local("kek-1", {"kek-1": bytes(32)}))


def test_a_new_active_key_leaves_old_envelopes_readable():
    keys = local("kek-2", {"kek-1": bytes(range(32)), "kek-2": bytes(32)})
    assert disclose(ENVELOPE, ID, 1, keys) == b"a secret"
    assert enclose(b"x", ID, 2, keys).key_id == "kek-2"


def test_rewrapping_leaves_the_secret_closed_and_the_old_key_of_no_use():
    both = local("kek-2", {"kek-1": bytes(range(32)), "kek-2": bytes(32)})
    after = rewrapped(ENVELOPE, both)
    assert (after.key_id, after.first_key_id, after.ciphertext) == ("kek-2", "kek-1", ENVELOPE.ciphertext)
    assert disclose(after, ID, 1, local("kek-2", {"kek-2": bytes(32)})) == b"a secret"
    assert "kek-2 is not in the key file" in unreadable(after)
    unreadable(dataclasses.replace(after, first_key_id="kek-2"), keys=both)
    unreadable(dataclasses.replace(after, wrapped_key=ENVELOPE.wrapped_key), keys=both)


def test_only_a_key_that_opens_is_rewrapped():
    other = local("kek-2", {"kek-1": bytes(32), "kek-2": bytes(32)})
    with pytest.raises(SendenseError, match="key is another one"):
        rewrapped(ENVELOPE, other)


def test_a_key_file_is_made_once_and_kept_private(tmp_path: Path):
    file = tmp_path / "kek.json"
    assert create_key_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    assert not create_key_file(file)
    assert file.read_bytes() == before
    keys = load_key_file(file)
    assert disclose(enclose(b"x", ID, 1, keys), ID, 1, load_key_file(file)) == b"x"


async def test_a_new_key_is_in_the_file_and_active_and_the_old_one_stays(tmp_path: Path):
    file = tmp_path / "kek.json"
    create_key_file(file)
    keys = load_key_file(file)
    old = await keys.active_key_id()
    made = await envelope.enclose(b"x", ID, 1, keys)
    new = await keys.add_key()
    assert await keys.active_key_id() == new != old
    assert [each.key_id for each in await keys.keys()] == [new, old]
    assert all(each.create_time_us for each in await keys.keys())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
    again = load_key_file(file)
    assert await again.active_key_id() == new
    assert await envelope.disclose(made, ID, 1, again) == b"x"
    await keys.drop_key(old)
    assert [each.key_id for each in await load_key_file(file).keys()] == [new]


async def test_a_key_file_from_before_times_were_noted_is_read(tmp_path: Path):
    file = tmp_path / "kek.json"
    content = {"format_version": 1, "active": "a", "keys": {"a": GOOD_KEY}}
    create_private_file(file, json.dumps(content).encode())
    keys = load_key_file(file)
    assert [(each.key_id, each.create_time_us) for each in await keys.keys()] == [("a", None)]
    new = await keys.add_key()
    assert [each.key_id for each in await load_key_file(file).keys()] == [new, "a"]


async def test_a_key_file_that_lost_a_key_in_use_is_not_written_over(tmp_path: Path):
    file, other = tmp_path / "kek.json", tmp_path / "other.json"
    create_key_file(file)
    create_key_file(other)
    keys = load_key_file(file)
    file.write_bytes(other.read_bytes())
    with pytest.raises(SendenseError, match="changed while the service runs"):
        await keys.add_key()
    assert file.read_bytes() == other.read_bytes()


async def test_a_key_file_in_which_another_key_was_made_active_is_not_written_over(tmp_path: Path):
    file = tmp_path / "kek.json"
    create_key_file(file)
    keys = load_key_file(file)
    old = await keys.active_key_id()
    new = await keys.add_key()
    content = json.loads(file.read_text())
    changed = json.dumps({**content, "active": old})
    file.write_text(changed)
    for change in (keys.add_key(), keys.drop_key(old)):
        with pytest.raises(SendenseError, match=f"changed while the service runs: {old} is active in it"):
            await change
    assert file.read_text() == changed
    assert await keys.active_key_id() == new


async def test_a_key_file_that_cannot_be_replaced_stays_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "kek.json"
    create_key_file(file)
    keys, before = load_key_file(file), file.read_bytes()
    active = await keys.active_key_id()

    def busy(*_: object) -> Path:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(SendenseError, match="cannot be replaced: Device or resource busy") as refused:
        await keys.add_key()
    assert refused.value.reason == Reason.REASON_OUTPUT_UNWRITABLE
    assert "mount the directory" in refused.value.remedy
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])
    assert await keys.active_key_id() == active


def test_keys_show_nothing(tmp_path: Path):
    file = tmp_path / "kek.json"
    create_key_file(file)
    (key,) = json.loads(file.read_text())["keys"].values()
    keys = load_key_file(file)
    assert key not in repr(keys) + repr(vars(keys))
    assert repr(base64.b64decode(key)) not in repr(vars(keys))


GOOD_KEY = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "sesame",
        "[]",
        "{}",
        json.dumps({"format_version": 2, "active": "a", "keys": {"a": GOOD_KEY}}),
        json.dumps({"format_version": 1, "active": "b", "keys": {"a": GOOD_KEY}}),
        json.dumps({"format_version": 1, "active": "a", "keys": {"a": "sesame"}}),
        json.dumps({"format_version": 1, "active": "a", "keys": {"a": "c2VzYW1l"}}),
        json.dumps({"format_version": 1, "active": "a", "keys": {"a": None}}),
        json.dumps({"format_version": 1, "active": "a", "keys": {}}),
        json.dumps({"format_version": 1, "active": ["a"], "keys": {"a": GOOD_KEY}}),
    ],
)
def test_a_damaged_key_file_is_no_key_and_is_not_quoted(tmp_path: Path, content: str):
    file = tmp_path / "kek.json"
    create_private_file(file, content.encode())
    with pytest.raises(SendenseError, match="there is no key-encryption key in") as refused:
        load_key_file(file)
    assert refused.value.reason == Reason.REASON_CREDENTIAL_UNREADABLE
    assert "sesame" not in str(refused.value)
    assert refused.value.__cause__ is None
