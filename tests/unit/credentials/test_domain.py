# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.clients.credentials import Login
from sendense_common.errors import SendenseError
from sendense_common.keys import Redemption
from sendense_credentials.domain.agent import check_agent_id
from sendense_credentials.domain.credential import Credential, Envelope, check_name
from sendense_credentials.domain.lease import Lease, operation_name, refusal, seconds_off
from sendense_credentials.domain.secret import Secret
from sendense_credentials.rpc.wire import to_ns, to_operation, to_uuid

pytestmark = pytest.mark.unit

ODD = "+-\"'\\ $#%ü "


@given(st.text(min_size=1, max_size=1024))
def test_a_password_may_be_any_text(password):
    assert Secret("user", password).password == password


@pytest.mark.parametrize(
    ("username", "password", "field"),
    [
        ("", "p", "username"),
        ("u" * 257, "p", "username"),
        ("u\n", "p", "username"),
        ("u", "", "password"),
        ("u", "pass" * 257, "password"),
    ],
)
def test_impossible_secrets_are_refused_without_quoting_them(username, password, field):
    with pytest.raises(SendenseError, match=f"secret.{field}") as refused:
        Secret(username, password)
    assert refused.value.reason == Reason.REASON_INVALID_REQUEST
    assert "pass" * 2 not in str(refused.value)


def test_ff22_nothing_shows_a_secret_by_accident():
    assert repr(Secret("someone", ODD)) == "Secret()"
    assert repr(Login("someone", ODD)) == "Login()"
    envelope = Envelope("kek", b"wrapped", b"cipher", "kek")
    shown = repr(Credential("id", "name", 1, 0, 0, envelope, bound_to=""))
    assert "wrapped" not in shown
    assert "cipher" not in shown


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a" * 129, "\x1b[31m"])
def test_impossible_names_are_refused(name):
    with pytest.raises(SendenseError, match="name: must have"):
        check_name(name)


def test_names_may_have_blanks_inside_and_any_script():
    assert check_name("Müller's vCenter (1)") == "Müller's vCenter (1)"


@pytest.mark.parametrize("agent_id", ["", "A", "a.b", "../a", "a" * 64, "a\n"])
def test_impossible_agent_ids_are_refused(agent_id):
    with pytest.raises(SendenseError, match="agent_id"):
        check_agent_id(agent_id)


@pytest.mark.parametrize("text", ["", "1", "{3f0b7d5e-0000-4000-8000-00000000000a}", "3F" * 16, "a" * 32])
def test_only_the_usual_spelling_of_a_uuid_is_taken(text):
    with pytest.raises(SendenseError, match="lease_id: must be a UUID"):
        to_uuid("lease_id", text)


@pytest.mark.parametrize("operation", [0, -1, 99])
def test_unknown_operations_are_refused(operation):
    with pytest.raises(SendenseError, match="operation"):
        to_operation(operation)
    assert operation_name(99) == "99"


@pytest.mark.parametrize(
    "time",
    [
        Timestamp(),
        Timestamp(seconds=-1),
        Timestamp(seconds=2**62),
        Timestamp(nanos=-1),
        Timestamp(seconds=10**10),
    ],
)
def test_impossible_times_are_refused(time):
    with pytest.raises(SendenseError, match="sign_time"):
        to_ns("sign_time", time)


MINUTE_US = 60_000_000
NOW_US = 1_800_000_000_000_000
REQUEST = Redemption("lease-1", "c", "site-a", 1, NOW_US * 1000, bytes(16))


@pytest.mark.parametrize(
    ("ahead_us", "off_s"),
    [
        (0, 0),
        (5 * MINUTE_US, 0),
        (-5 * MINUTE_US, 0),
        (5 * MINUTE_US + 1, 300),
        (-5 * MINUTE_US - 1, -301),
        (24 * 60 * MINUTE_US, 86_400),
    ],
)
def test_the_time_of_signing_may_be_five_minutes_off(ahead_us, off_s):
    assert seconds_off(REQUEST, NOW_US - ahead_us) == off_s


def lease(**changes) -> Lease:
    fields = {
        "lease_id": "lease-1",
        "credential_id": "c",
        "agent_id": "site-a",
        "operation": 1,
        "subject_id": "job",
        "expire_time_us": NOW_US + MINUTE_US,
        **changes,
    }
    return Lease(**fields)


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        (None, Reason.REASON_LEASE_INVALID, "does not exist, or not for agent site-a"),
        (lease(agent_id="site-b"), Reason.REASON_LEASE_INVALID, "does not exist, or not for agent site-a"),
        (lease(operation=3), Reason.REASON_LEASE_INVALID, "issued for TEST, not for BACKUP"),
        (lease(credential_id="d"), Reason.REASON_LEASE_INVALID, "was not issued for credential c"),
        (lease(redeem_time_us=NOW_US), Reason.REASON_LEASE_USED, "was used already"),
        (
            lease(end_time_us=NOW_US, end_cause="its grant was taken back"),
            Reason.REASON_LEASE_REVOKED,
            "was ended: its grant was taken back",
        ),
        (lease(expire_time_us=NOW_US - 7_000_000), Reason.REASON_LEASE_EXPIRED, "expired 7 s ago"),
        (lease(expire_time_us=NOW_US), Reason.REASON_LEASE_EXPIRED, "expired 0 s ago"),
    ],
)
def test_a_refused_lease_says_why(found, reason, words):
    error = refusal(found, REQUEST, NOW_US)
    assert error.reason == reason
    assert words in error.message
    assert not error.retryable
