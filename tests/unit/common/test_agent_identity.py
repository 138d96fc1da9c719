# SPDX-License-Identifier: Apache-2.0
"""One fingerprint over all that an agent is."""

from __future__ import annotations

import base64
import dataclasses

import asyncssh
import pytest

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentIdentity, AgentKeys, AgentPublicKeys, parse_ssh_key
from sendense_common.tunnel import fingerprint

pytestmark = pytest.mark.unit


def ssh_line() -> str:
    return asyncssh.generate_private_key("ssh-ed25519", comment="paris").export_public_key().decode()


def test_a_change_of_any_key_or_of_the_site_changes_the_fingerprint():
    keys, others = AgentKeys.generate().public, AgentKeys.generate().public
    one = AgentIdentity("paris", parse_ssh_key("key", ssh_line())[0], keys)
    changed = [
        dataclasses.replace(one, site="lyon"),
        dataclasses.replace(one, ssh_public_key=parse_ssh_key("key", ssh_line())[0]),
        dataclasses.replace(one, keys=AgentPublicKeys(others.signing, keys.sealing)),
        dataclasses.replace(one, keys=AgentPublicKeys(keys.signing, others.sealing)),
        dataclasses.replace(one, keys=AgentPublicKeys(keys.sealing, keys.signing)),
    ]
    assert len({each.fingerprint for each in [one, *changed]}) == 6
    assert dataclasses.replace(one).fingerprint == one.fingerprint


def test_an_ssh_key_has_one_spelling_and_the_fingerprint_that_ssh_shows():
    line = ssh_line()
    spelled, shown = parse_ssh_key("key", f"  {line}\n")
    assert spelled == " ".join(line.split()[:2])
    assert shown == fingerprint(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 é",
        "ssh-rsa AAAA",
        "ssh-ed25519 " + base64.b64encode(b"x" * 51).decode(),
    ],
)
def test_what_is_no_ed25519_key_is_refused(line: str):
    with pytest.raises(SendenseError) as refused:
        parse_ssh_key("keys.ssh", line)
    assert refused.value.reason == Reason.REASON_INVALID_REQUEST
    assert refused.value.metadata["field"] == "keys.ssh"
