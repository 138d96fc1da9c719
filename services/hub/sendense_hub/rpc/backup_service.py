# SPDX-License-Identifier: Apache-2.0
"""BackupService."""

from __future__ import annotations

from typing import Any

import grpc

from sendense.hub.v1 import backup_service_pb2 as pb
from sendense.hub.v1 import job_pb2
from sendense.hub.v1.backup_service_pb2_grpc import BackupServiceServicer
from sendense_common.errors import invalid
from sendense_hub.jobs.intake import Intake
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]


class BackupService(BackupServiceServicer):
    """Starts backups."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    async def StartBackup(self, request: pb.StartBackupRequest, context: _Context) -> pb.StartBackupResponse:
        """See the contract."""
        request.request_id = checks.request_id(request.request_id)
        checks.text("vm", request.vm)
        checks.text("vcenter_name", request.vcenter_name, required=False)
        checks.text("repository_name", request.repository_name, required=False)
        if request.mode not in job_pb2.BackupMode.values():
            raise invalid("mode", "is unknown")
        if request.quiesce not in job_pb2.Quiesce.values():
            raise invalid("quiesce", "is unknown")
        return pb.StartBackupResponse(job=await self._intake.accept(request))
