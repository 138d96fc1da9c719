# SPDX-License-Identifier: Apache-2.0
"""vSphere's faults in our words, with its own kept beside them."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim, vmodl

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

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
        return SendenseError(
            Reason.REASON_VCENTER_LOGIN_FAILED,
            message,
            remedy="Change the password with `sendense vcenter` and test it; it was tried once, and is not "
            "tried again by itself, for accounts get locked.",
            retryable=False,
            **facts,
        )
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
