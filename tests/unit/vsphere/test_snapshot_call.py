# SPDX-License-Identifier: Apache-2.0
"""What is asked of vSphere when a snapshot is made."""

from __future__ import annotations

import types
from typing import Any

import pytest
from pyVmomi import vim

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.vsphere.machine import Machine, describe

pytestmark = pytest.mark.unit


class Session:
    """Answers as a vCenter whose tasks are done at once."""

    name = "north"

    async def properties(self, reference: Any, *paths: str) -> dict[str, Any]:
        if paths == ("info",):
            return {"info": types.SimpleNamespace(state=vim.TaskInfo.State.success, result=reference)}
        known = {"name": "web", "config.instanceUuid": "u", "config.hardware.device": []}
        return {path: known[path] for path in paths if path in known}

    async def call_expecting(self, doing: str, faults: Any, function: Any) -> Any:
        return function()


async def test_rule_17_a_snapshot_names_hub_and_job_and_holds_no_memory() -> None:
    asked: list[tuple[Any, ...]] = []

    def create(name: str, description: str, memory: bool, quiesce: bool) -> Any:
        asked.append((name, description, memory, quiesce))
        return types.SimpleNamespace(_moId="snapshot-1")

    machine = Machine(Session(), types.SimpleNamespace(_moId="vm-1", CreateSnapshot_Task=create))  # type: ignore[arg-type]
    await machine.refresh()
    await machine.create_snapshot("hub-1", "0123456789", pb.QUIESCE_MODE_OFF)
    assert asked == [("sendense-01234567", describe("hub-1", "0123456789"), False, False)]
    assert describe("hub-1", "0123456789").endswith("hub=hub-1 job=0123456789")
