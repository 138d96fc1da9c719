# SPDX-License-Identifier: Apache-2.0
"""InvitationService, for operators."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from sendense.hub.v1 import invitation_service_pb2 as pb
from sendense.hub.v1.invitation_service_pb2_grpc import InvitationServiceServicer
from sendense_common.keys import parse_ssh_key
from sendense_common.paths import HubPaths
from sendense_hub.domain.invitations import NO_KEYS, Invitation
from sendense_hub.domain.times import to_timestamp
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]


class InvitationService(InvitationServiceServicer):
    """Who is let in."""

    def __init__(self, enrolment: Enrolment, paths: HubPaths) -> None:
        self._enrolment = enrolment
        self._paths = paths

    async def InviteSite(self, request: pb.InviteSiteRequest, context: _Context) -> pb.InviteSiteResponse:
        """See the contract."""
        site = checks.site("site_name", request.site_name)
        invitation, code = await self._enrolment.invite(site, rotate=request.rotate)
        public_half = self._paths.host_key_file.with_suffix(".pub")
        host_key = (await asyncio.to_thread(public_half.read_text)).strip()
        return pb.InviteSiteResponse(invitation=_message(invitation), code=code, host_public_key=host_key)

    async def ListInvitations(
        self, request: pb.ListInvitationsRequest, context: _Context
    ) -> pb.ListInvitationsResponse:
        """See the contract."""
        return pb.ListInvitationsResponse(invitations=map(_message, await self._enrolment.listed()))

    async def ApproveInvitation(
        self, request: pb.ApproveInvitationRequest, context: _Context
    ) -> pb.ApproveInvitationResponse:
        """See the contract."""
        site = checks.site("site_name", request.site_name)
        _, fingerprint = parse_ssh_key("ssh_public_key", request.ssh_public_key)
        approved = await asyncio.shield(self._enrolment.approve(site, fingerprint))
        return pb.ApproveInvitationResponse(invitation=_message(approved))

    async def RejectInvitation(
        self, request: pb.RejectInvitationRequest, context: _Context
    ) -> pb.RejectInvitationResponse:
        """See the contract."""
        site = checks.site("site_name", request.site_name)
        why = checks.text("why", request.why, required=False)
        await self._enrolment.reject(site, why or "an operator rejected it")
        return pb.RejectInvitationResponse()


def _message(invitation: Invitation) -> pb.Invitation:
    keys = invitation.keys
    made = pb.Invitation(
        site_name=invitation.site,
        state=invitation.state,
        create_time=to_timestamp(invitation.create_time_us),
        expire_time=to_timestamp(invitation.expire_time_us),
        why=invitation.why,
        rotates=invitation.rotates,
    )
    if keys != NO_KEYS:
        made.keys.ssh_public_key = keys.ssh_public_key
        made.keys.signing_public_key = keys.signing
        made.keys.sealing_public_key = keys.sealing
    return made
