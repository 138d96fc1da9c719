# SPDX-License-Identifier: Apache-2.0
"""vSphere's faults and names in our words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere.faults import translate
from sendense_agent.vsphere.names import shown

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("fault", "reason", "retryable"),
    [
        (vim.fault.InvalidLogin, Reason.REASON_VCENTER_LOGIN_FAILED, False),
        (vim.fault.PasswordExpired, Reason.REASON_VCENTER_ACCOUNT_LOCKED, False),
        (vim.fault.NoPermission, Reason.REASON_VCENTER_NO_PERMISSION, False),
        (vim.fault.NotAuthenticated, Reason.REASON_VCENTER_SESSION_LOST, True),
        (vim.fault.FileFault, Reason.REASON_VSPHERE_FAULT, False),
        (vmodl.fault.SystemError, Reason.REASON_VSPHERE_FAULT, False),
    ],
)
def test_rule_24_each_fault_has_its_reason(fault: Any, reason: Reason.ValueType, retryable: bool) -> None:
    error = translate(fault(msg="in its own words"), doing="making a snapshot of VM web", vcenter="north")
    assert (error.reason, error.retryable) == (reason, retryable)
    assert error.message.startswith("making a snapshot of VM web: vCenter north answers ")
    assert "in its own words" in error.message
    assert error.metadata["fault"] == fault.__name__
    assert error.metadata["vcenter"] == "north"


def test_a_missing_privilege_is_named() -> None:
    fault = vim.fault.NoPermission(privilegeId="VirtualMachine.State.CreateSnapshot")
    error = translate(fault, doing="x", vcenter="y")
    assert "VirtualMachine.State.CreateSnapshot" in error.message
    assert error.metadata["privilege"] == "VirtualMachine.State.CreateSnapshot"


def test_a_fault_without_words_has_none_to_show() -> None:
    assert "no message" in translate(vim.fault.FileFault(), doing="x", vcenter="y").message


@given(st.text())
def test_names_are_shown_as_people_gave_them(name: str) -> None:
    escaped = name.replace("%", "%25").replace("/", "%2F").replace("\\", "%5C")
    assert shown(escaped) == name
    assert shown(escaped.replace("%2F", "%2f").replace("%5C", "%5c")) == name or "%25" in escaped


def test_only_what_vsphere_escapes_is_unescaped() -> None:
    assert shown("100% of %41 %2541 %zz") == "100% of %41 %41 %zz"
