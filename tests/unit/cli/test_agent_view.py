# SPDX-License-Identifier: Apache-2.0
"""Each fingerprint that is shown of an agent says which keys it is of."""

from __future__ import annotations

import base64
import io

import pytest
from rich.console import Console

from sendense.hub.v1 import invitation_service_pb2 as pb
from sendense.hub.v1 import site_service_pb2
from sendense_cli import agent_view
from sendense_cli.agents import KnownAgent, identity_of
from sendense_common.keys import AgentIdentity, AgentPublicKeys, parse_ssh_key

pytestmark = pytest.mark.unit

_BLOB = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(range(32))
SSH_KEY, SSH_FINGERPRINT = parse_ssh_key("key", f"ssh-ed25519 {base64.b64encode(_BLOB).decode()}")
KEYS = AgentPublicKeys(bytes([1]) * 32, bytes([9]) + bytes(31))
IDENTITY = AgentIdentity("paris", SSH_KEY, KEYS)


def agent(*, waits: bool = False) -> KnownAgent:
    site = site_service_pb2.Site(name="paris", ssh_public_key=SSH_KEY, fingerprint=SSH_FINGERPRINT)
    site.create_time.FromSeconds(1_700_000_000)
    keys = pb.EnrolmentKeys(
        ssh_public_key=SSH_KEY, signing_public_key=bytes([2]) * 32, sealing_public_key=KEYS.sealing
    )
    one = pb.Invitation(site_name="paris", state=pb.INVITATION_STATE_PENDING, rotates=True, keys=keys)
    return KnownAgent("paris", site, IDENTITY, one if waits else None)


def test_the_list_says_that_its_fingerprint_is_of_all_the_agents_keys():
    out = io.StringIO()
    Console(file=out, width=300).print(agent_view.rows([agent()]))
    head, line = out.getvalue().splitlines()
    assert "AGENT FINGERPRINT" in head
    assert IDENTITY.fingerprint in line


def test_each_fingerprint_of_one_agent_is_labelled_with_its_keys():
    found = agent(waits=True)
    lines = agent_view.details(found).splitlines()
    assert found.invitation is not None
    of = {
        IDENTITY.fingerprint: "agent",
        SSH_FINGERPRINT: "SSH key",
        KEYS.fingerprint: "lease keys",
        identity_of(found.invitation).fingerprint: "shown",
    }
    assert len(of) == 4
    for fingerprint, label in of.items():
        (line,) = [each for each in lines if fingerprint in each]
        assert line.startswith(label), line
        assert "(" in line, "it says of which keys it is"


def test_programs_get_each_by_a_name_of_its_own():
    told = agent().as_dict()
    assert told["fingerprint"] == IDENTITY.fingerprint
    assert told["ssh_fingerprint"] == SSH_FINGERPRINT
    assert told["lease_keys_fingerprint"] == KEYS.fingerprint
