# SPDX-License-Identifier: Apache-2.0
"""EnrolmentService: what an agent that nobody knows may say. Alone on its socket."""

from __future__ import annotations

from typing import Any

import grpc

from sendense.hub.v1 import enrolment_service_pb2 as pb
from sendense.hub.v1.enrolment_service_pb2_grpc import EnrolmentServiceServicer
from sendense_common.errors import invalid
from sendense_common.keys import AgentPublicKeys, parse_ssh_key
from sendense_hub.domain.invitations import ShownKeys
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]


class EnrolmentService(EnrolmentServiceServicer):
    """Takes codes and public keys."""

    def __init__(self, enrolment: Enrolment) -> None:
        self._enrolment = enrolment

    async def Enrol(self, request: pb.EnrolRequest, context: _Context) -> pb.EnrolResponse:
        """See the contract."""
        site = checks.site("site_name", request.site_name)
        ssh_key, fingerprint = parse_ssh_key("keys.ssh_public_key", request.keys.ssh_public_key)
        try:
            keys = AgentPublicKeys(request.keys.signing_public_key, request.keys.sealing_public_key)
        except ValueError as error:
            raise invalid("keys", str(error)) from error
        shown = ShownKeys(ssh_key, fingerprint, keys.signing, keys.sealing)
        return pb.EnrolResponse(state=await self._enrolment.show(site, request.code, shown))
