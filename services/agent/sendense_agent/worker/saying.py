# SPDX-License-Identifier: Apache-2.0
"""What a backup says to its hub, through the agent's lasting process."""

from __future__ import annotations

from sendense.agent.v1 import backup_pb2 as pb
from sendense_agent.worker.channel import Channel
from sendense_common import telemetry


class Saying:
    """Events, each with its time and span."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def event(self, event: pb.RunBackupResponse) -> None:
        """Any."""
        event.time.GetCurrentTime()
        event.traceparent = telemetry.traceparent()
        await self._channel.send(event)

    async def phase(self, phase: pb.AgentPhase.ValueType) -> None:
        """A phase begins."""
        await self.event(pb.RunBackupResponse(phase=pb.PhaseStarted(phase=phase)))

    async def warn(self, code: str, message: str, disk_key: int = 0) -> None:
        """Something a person should know."""
        warning = pb.Warning(code=code, message=message, disk_key=disk_key)
        await self.event(pb.RunBackupResponse(warning=warning))
