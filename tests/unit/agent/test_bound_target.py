# SPDX-License-Identifier: Apache-2.0
"""A password goes to the vCenter that the operator bound it to, and to no other that a hub names."""

from __future__ import annotations

import logging

import pytest

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.credential_service_pb2 import Endpoint
from sendense_agent.vsphere import VcenterTarget
from sendense_agent.worker.bound_target import bound_target
from sendense_common.errors import SendenseError

pytestmark = pytest.mark.unit

PINNED = Endpoint(host="vc.example.net", port=443, certificate_sha256=bytes(32))
BY_CA = Endpoint(host="vc.example.net", port=443, ca_pem="-----BEGIN\nAAAA\n")


def said(**changes) -> VcenterAccess:
    fields = {"name": "prod", "host": "vc.example.net", "port": 443, "certificate_sha256": bytes(32)}
    if "ca_pem" in changes:
        del fields["certificate_sha256"]
    return VcenterAccess(**{**fields, **changes})


def test_a_hub_that_says_the_same_is_followed():
    expected = VcenterTarget("prod", "vc.example.net", 443, certificate_sha256=bytes(32))
    assert bound_target(said(), PINNED) == expected
    assert bound_target(said(host="VC.example.net"), PINNED) == expected
    with_ca = VcenterTarget("prod", "vc.example.net", 443, ca_pem=BY_CA.ca_pem)
    assert bound_target(said(ca_pem="-----BEGIN\r\nAAAA"), BY_CA) == with_ca


@pytest.mark.parametrize(
    ("access", "endpoint", "words"),
    [
        (said(host="evil.example.net"), PINNED, "evil.example.net:443 instead of vc.example.net:443"),
        (said(port=8443), PINNED, "vc.example.net:8443 instead of vc.example.net:443"),
        (said(certificate_sha256=b"x" * 32), PINNED, "another certificate"),
        (said(ca_pem="-----BEGIN\nBBBB\n"), BY_CA, "another authority"),
        (said(ca_pem=BY_CA.ca_pem), PINNED, "another authority and another certificate"),
        (said(), BY_CA, "another authority and another certificate"),
    ],
    ids=["host", "port", "certificate", "CA", "CA for a certificate", "certificate for a CA"],
)
def test_a_hub_that_says_anything_else_is_refused(access, endpoint, words):
    with pytest.raises(SendenseError) as refused:
        bound_target(access, endpoint)
    assert refused.value.reason == Reason.REASON_VCENTER_NOT_AS_BOUND
    assert words in refused.value.message
    assert "`sendense vcenter change prod --address HOST --ca-file FILE`" in refused.value.remedy
    assert not refused.value.retryable


def test_a_password_of_before_there_were_bounds_goes_where_the_hub_says_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert bound_target(said(host="h"), None).host == "h"
    assert "bind it with `sendense vcenter change prod --address HOST --ca-file FILE`" in caplog.text
