# SPDX-License-Identifier: Apache-2.0
"""vSphere's faults in our words, with its own kept beside them."""

from __future__ import annotations

import re
from typing import Any

from pyVmomi import vim, vmodl

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_LOCKED = re.compile(r"\block(ed|out)?\b", re.IGNORECASE)

REFUSED_LOGIN = frozenset({Reason.REASON_VCENTER_LOGIN_FAILED, Reason.REASON_VCENTER_ACCOUNT_LOCKED})
"""What says that these words open nothing, and that trying them again may lock the account."""

QUIESCE_FAULTS = (
    vim.fault.ApplicationQuiesceFault,
    vim.fault.FilesystemQuiesceFault,
    vim.fault.ToolsUnavailable,
)
"""What says that the guest could not be quiesced."""


def fault_name(fault: Any) -> str:
    """As "vim.fault.InvalidLogin"."""
    return type(fault).__name__


def translate(fault: vmodl.MethodFault, *, doing: str, vcenter: str) -> SendenseError:
    """The error behind a fault.

    Args:
        fault: vSphere's.
        doing: what was being done, as "making a snapshot of VM web".
        vcenter: its name.
    """
    words = fault.msg or getattr(fault, "faultMessage", None) or "no message"
    facts: dict[str, Any] = {"vcenter": vcenter, "fault": fault_name(fault), "detail": str(fault.msg or "")}
    message = f"{doing}: vCenter {vcenter} answers {fault_name(fault)}: {words}"
    if isinstance(fault, vim.fault.InvalidLogin):
        return _refused_login(fault, message, vcenter, facts)
    if isinstance(fault, vim.fault.NotAuthenticated):  # which is a NoPermission too, so it is asked first
        return SendenseError(Reason.REASON_VCENTER_SESSION_LOST, message, **facts)
    if isinstance(fault, vim.fault.NoPermission):
        return SendenseError(
            Reason.REASON_VCENTER_NO_PERMISSION,
            f"{message} (missing privilege: {fault.privilegeId})",
            remedy="Give the user that privilege on the VM.",
            privilege=fault.privilegeId,
            **facts,
        )
    return SendenseError(
        Reason.REASON_VSPHERE_FAULT,
        message,
        remedy="The vCenter's events have more about it.",
        **facts,
    )


def _refused_login(fault: Any, message: str, vcenter: str, facts: dict[str, Any]) -> SendenseError:
    """What is known of the account. Many a vCenter says the same of a locked one as of a wrong password."""
    again = f"`sendense vcenter test {vcenter}`"
    if isinstance(fault, vim.fault.PasswordExpired):
        return SendenseError(
            Reason.REASON_VCENTER_ACCOUNT_LOCKED,
            f"{message} (the password has expired)",
            remedy="Give the user a new password at the vCenter, then tell it here: "
            f"`sendense vcenter password {vcenter} --username USER --password-file FILE`.",
            retryable=False,
            cause="password_expired",
            **facts,
        )
    if _LOCKED.search(str(fault.msg or "")):
        return SendenseError(
            Reason.REASON_VCENTER_ACCOUNT_LOCKED,
            message,
            remedy=f"Unlock the user at the vCenter, then {again}. Until then nothing logs in.",
            retryable=False,
            cause="locked",
            **facts,
        )
    return SendenseError(
        Reason.REASON_VCENTER_LOGIN_FAILED,
        message,
        remedy="Set the right user and password: "
        f"`sendense vcenter password {vcenter} --username USER --password-file FILE`. If they are right, "
        f"the account may be locked or disabled: mend that at the vCenter, then {again}. Nothing tries them "
        "again by itself, for accounts get locked.",
        retryable=False,
        cause="wrong_password",
        **facts,
    )
