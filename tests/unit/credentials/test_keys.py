# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys import (
    AgentKeys,
    AgentPublicKeys,
    Redemption,
    canonical,
    ensure_agent_keys,
    load_agent_keys,
    open_sealed,
    seal,
)
from sendense_common.private_file import create_private_file, read_private_file

pytestmark = pytest.mark.unit

AGENT = AgentKeys.generate()
OTHER = AgentKeys.generate()
REDEMPTION = Redemption("lease-1", "credential-1", "site-a", 1, 1_800_000_000_000_000_001, bytes(range(16)))

FIELD = st.one_of(st.text(max_size=8), st.binary(max_size=8), st.integers(-(2**63), 2**63 - 1))


def as_bytes(field: str | int | bytes) -> bytes:
    """What a field says, without its type: "a" and b"a" are one message."""
    if isinstance(field, int):
        return field.to_bytes(8, "big", signed=True)
    return field.encode() if isinstance(field, str) else field


@given(st.lists(FIELD, max_size=4), st.lists(FIELD, max_size=4))
def test_different_fields_never_make_the_same_bytes(one, two):
    same = [as_bytes(each) for each in one] == [as_bytes(each) for each in two]
    assert (canonical("p", *one) == canonical("p", *two)) is same


def test_bytes_cannot_move_between_fields():
    assert canonical("p", "ab", "c") != canonical("p", "a", "bc")
    assert canonical("p", "a") != canonical("p", "a", "")
    assert canonical("p", "a") != canonical("q", "a")


CHANGES = [
    {"lease_id": "lease-2"},
    {"credential_id": "credential-2"},
    {"agent_id": "site-b"},
    {"operation": 2},
    {"nonce": bytes(16)},
]


@pytest.mark.parametrize("change", [*CHANGES, {"sign_time_ns": 1_800_000_000_000_000_002}])
def test_a_signature_covers_every_field(change):
    signature = AGENT.sign(REDEMPTION.signed_bytes)
    assert AGENT.public.verify(signature, REDEMPTION.signed_bytes)
    assert not AGENT.public.verify(signature, dataclasses.replace(REDEMPTION, **change).signed_bytes)


@pytest.mark.parametrize("signature", [b"", bytes(64), bytes(63), bytes(65)])
def test_a_signature_of_another_shape_is_just_wrong(signature):
    assert not AGENT.public.verify(signature, REDEMPTION.signed_bytes)


def test_a_signature_of_another_agent_is_wrong():
    assert not AGENT.public.verify(OTHER.sign(REDEMPTION.signed_bytes), REDEMPTION.signed_bytes)


@given(st.binary(max_size=2000))
def test_what_is_sealed_opens_to_the_same_bytes(plaintext):
    assert open_sealed(seal(plaintext, AGENT.public, REDEMPTION), AGENT, REDEMPTION) == plaintext


@pytest.mark.parametrize("change", CHANGES)
def test_a_sealed_answer_opens_only_for_its_own_request(change):
    sealed = seal(b"secret", AGENT.public, dataclasses.replace(REDEMPTION, **change))
    with pytest.raises(SendenseError, match="was altered, or not sealed to site-a") as refused:
        open_sealed(sealed, AGENT, REDEMPTION)
    assert refused.value.reason == Reason.REASON_CREDENTIAL_UNREADABLE


def test_a_sealed_answer_opens_only_with_the_agents_key():
    with pytest.raises(SendenseError, match="was altered, or not sealed"):
        open_sealed(seal(b"secret", OTHER.public, REDEMPTION), AGENT, REDEMPTION)


SEALED = seal(b"secret", AGENT.public, REDEMPTION)


@given(st.integers(0, len(SEALED) - 1), st.integers(0, 7))
def test_every_flipped_bit_of_a_sealed_answer_is_noticed(position, bit):
    broken = bytearray(SEALED)
    broken[position] ^= 1 << bit
    # X25519 ignores the highest bit of the encapsulated key's last byte, but the derived key covers it.
    with pytest.raises(SendenseError, match="was altered"):
        open_sealed(bytes(broken), AGENT, REDEMPTION)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 47, len(SEALED) - 1])
def test_a_cut_off_answer_is_noticed(length):
    with pytest.raises(SendenseError, match="was altered"):
        open_sealed(SEALED[:length], AGENT, REDEMPTION)


def test_the_length_of_a_sealed_answer_does_not_tell_the_length_of_a_password():
    lengths = {len(seal(b"x" * count, AGENT.public, REDEMPTION)) for count in range(1, 300)}
    assert len(lengths) == 1


@pytest.mark.parametrize(
    ("signing", "sealing", "problem"),
    [
        (b"", bytes(31) + b"\x09", "signing key has 0 bytes instead of 32"),
        (bytes(32), bytes(33), "sealing key has 33 bytes instead of 32"),
        (
            AGENT.public.signing,
            bytes(32),
            "the sealing key is of low order",
        ),  # a point of low order: its shared secret is known to all
    ],
    ids=["empty", "long", "low order"],
)
def test_unusable_public_keys_are_refused(signing, sealing, problem):
    with pytest.raises(ValueError, match=problem):
        AgentPublicKeys(signing, sealing)


def test_public_keys_travel_as_one_line():
    line = AGENT.public.to_line("site-a")
    assert line.startswith("sendense-agent-keys ")
    assert line.endswith(" site-a")
    assert AgentPublicKeys.from_line(line + "\n") == AGENT.public
    assert AgentPublicKeys.from_line(AGENT.public.to_line()) == AGENT.public
    assert AGENT.public.fingerprint.startswith("SHA256:")
    assert AGENT.public.fingerprint != OTHER.public.fingerprint


@pytest.mark.parametrize(
    "line",
    [
        "",
        AGENT.public.to_line().replace("sendense-agent-keys", "ssh-ed25519"),
        "sendense-agent-keys",
        "sendense-agent-keys ä",
        "sendense-agent-keys AAAA",
        AGENT.public.to_line()[:-4],
    ],
    ids=["empty", "SSH", "no keys", "not base64", "too short", "cut off"],
)
def test_another_line_is_not_public_keys(line):
    with pytest.raises(SendenseError, match="not the public keys of an agent") as refused:
        AgentPublicKeys.from_line(line)
    assert refused.value.reason == Reason.REASON_INVALID_REQUEST


def test_agent_keys_are_made_once_and_kept_private(tmp_path: Path):
    file = tmp_path / "agent" / "keys.pem"
    made = ensure_agent_keys(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    again = ensure_agent_keys(file)
    assert again.public == made.public == load_agent_keys(file).public
    assert open_sealed(seal(b"x", made.public, REDEMPTION), again, REDEMPTION) == b"x"
    assert list(file.parent.iterdir()) == [file]


def test_agent_keys_show_nothing_private():
    pem = AGENT.to_pem().decode().splitlines()
    assert not any(line in repr(AGENT) + repr(vars(AGENT)) for line in pem)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", AGENT.to_pem()[:-40], AGENT.to_pem() * 2], ids=range(4)
)
def test_a_file_with_something_else_is_not_agent_keys(tmp_path: Path, content: bytes):
    file = tmp_path / "keys.pem"
    create_private_file(file, content)
    with pytest.raises(SendenseError, match="does not hold this agent's keys"):
        ensure_agent_keys(file)
    assert file.read_bytes() == content


def test_missing_agent_keys_are_not_made_when_they_are_only_loaded(tmp_path: Path):
    with pytest.raises(SendenseError, match="does not hold this agent's keys"):
        load_agent_keys(tmp_path / "keys.pem")
    assert not (tmp_path / "keys.pem").exists()


def test_a_private_file_that_others_may_read_is_refused(tmp_path: Path):
    file = tmp_path / "key"
    assert create_private_file(file, b"1")
    file.chmod(0o640)
    with pytest.raises(SendenseError, match=r"others may open it \(mode 0640\)"):
        read_private_file(file)


def test_a_private_file_is_never_overwritten(tmp_path: Path):
    file = tmp_path / "key"
    assert create_private_file(file, b"1")
    assert not create_private_file(file, b"2")
    assert read_private_file(file) == b"1"
    assert list(tmp_path.iterdir()) == [file]


def test_a_process_can_forbid_core_dumps():
    code = (
        "import ctypes; from sendense_common.process import forbid_core_dumps; forbid_core_dumps();"
        "print(ctypes.CDLL(None).prctl(3))"  # PR_GET_DUMPABLE
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
