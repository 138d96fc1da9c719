# SPDX-License-Identifier: Apache-2.0
"""Waiting for vSphere's tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from sendense.common.v1.reason_pb2 import Reason
from sendense_agent.vsphere.session import Session
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_SHORTEST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0
_BUSY_WAIT_S = 2.0


async def wait(session: Session, task: Any, *, doing: str, timeout_s: float) -> Any:
    """The result of a task.

    Raises:
        vmodl.MethodFault: the task's own fault.
        SendenseError: DEADLINE_EXCEEDED; the task may still be running then.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    pause_s = _SHORTEST_WAIT_S
    while asyncio.get_running_loop().time() < deadline:
        info = (await session.properties(task, "info")).get("info")
        if info is None:
            raise SendenseError(Reason.REASON_VSPHERE_FAULT, f"{doing}: vSphere shows nothing of its task")
        if info.state == vim.TaskInfo.State.success:
            return info.result
        if info.state == vim.TaskInfo.State.error:
            raise info.error
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_WAIT_S)
    raise SendenseError(
        Reason.REASON_DEADLINE_EXCEEDED, f"{doing}: vSphere's task did not end within {timeout_s:.0f} s"
    )


async def run(
    session: Session, start: Callable[[], Any], *, doing: str, timeout_s: float, patience_s: float = 0.0
) -> Any:
    """Starts a task and waits for it; while another task keeps the VM busy, tries again for `patience_s`.

    Raises:
        vmodl.MethodFault: what the start or the task failed with.
        SendenseError: DEADLINE_EXCEEDED, or what is not vSphere's.
    """
    deadline = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            task = await session.call_expecting(doing, vmodl.MethodFault, start)
            return await wait(session, task, doing=doing, timeout_s=timeout_s)
        except vim.fault.TaskInProgress:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            log.info("%s: another task is in progress; waiting", doing)
            await asyncio.sleep(_BUSY_WAIT_S)
