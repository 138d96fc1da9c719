# SPDX-License-Identifier: Apache-2.0
"""The agents of the sites, as hub and credentials service know them, put together.

Fingerprints are computed here, from the public keys themselves: nobody is believed about one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import invitation_service_pb2 as pb
from sendense.hub.v1 import site_service_pb2
from sendense.hub.v1.invitation_service_pb2_grpc import InvitationServiceStub
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceStub
from sendense_cli.session import Session, as_dict
from sendense_common.errors import SendenseError
from sendense_common.keys import AgentIdentity, AgentPublicKeys, parse_ssh_key

PENDING, APPROVED = pb.INVITATION_STATE_PENDING, pb.INVITATION_STATE_APPROVED


@dataclass(frozen=True)
class KnownAgent:
    """A site: let in, or on its way."""

    name: str
    site: site_service_pb2.Site | None
    """None: it was never let in."""
    identity: AgentIdentity | None
    """None: it was never let in, or the credentials service does not have its keys."""
    invitation: pb.Invitation | None
    """The newest."""

    @property
    def state(self) -> str:
        """approved, revoked, pending, invited, or refused."""
        if self.site is not None:
            return "revoked" if self.site.HasField("revoke_time") else "approved"
        assert self.invitation is not None
        words = {pb.INVITATION_STATE_OPEN: "invited", PENDING: "pending"}
        return words.get(self.invitation.state, "refused")

    @property
    def shown(self) -> AgentIdentity | None:
        """The keys that wait for approval."""
        if self.invitation is None or self.invitation.state != PENDING:
            return None
        return identity_of(self.invitation)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        site = self.site or site_service_pb2.Site()
        told = as_dict(site)
        return {
            "name": self.name,
            "state": self.state,
            "connected": site.connected,
            "agent_version": site.agent_version,
            "fingerprint": self.identity.fingerprint if self.identity else "",
            "ssh_fingerprint": site.fingerprint,
            "lease_keys_fingerprint": self.identity.keys.fingerprint if self.identity else "",
            "create_time": told.get("create_time"),
            "revoke_time": told.get("revoke_time"),
            "invitation": None
            if self.invitation is None
            else {
                **{name: value for name, value in as_dict(self.invitation).items() if name != "keys"},
                "fingerprint": identity_of(self.invitation).fingerprint
                if self.invitation.HasField("keys")
                else "",
            },
        }


def identity_of(invitation: pb.Invitation) -> AgentIdentity:
    """The agent that has shown keys with an invitation; INVALID_REQUEST when they are none."""
    keys = invitation.keys
    line, _ = parse_ssh_key("ssh_public_key", keys.ssh_public_key)
    return AgentIdentity(
        invitation.site_name, line, AgentPublicKeys(keys.signing_public_key, keys.sealing_public_key)
    )


async def known(session: Session) -> list[KnownAgent]:
    """All, by name."""
    async with session.hub() as hub:
        listed = await SiteServiceStub(hub).ListSites(site_service_pb2.ListSitesRequest())
        invited = await InvitationServiceStub(hub).ListInvitations(pb.ListInvitationsRequest())
    keys = await _lease_keys(session)
    sites = {each.name: each for each in listed.sites}
    invitations = {each.site_name: each for each in invited.invitations}
    made = []
    for name in sorted({*sites, *invitations}):
        site, identity = sites.get(name), None
        if site is not None and name in keys:
            line, _ = parse_ssh_key("ssh_public_key", site.ssh_public_key)
            identity = AgentIdentity(name, line, keys[name])
        made.append(KnownAgent(name, site, identity, invitations.get(name)))
    return made


async def _lease_keys(session: Session) -> dict[str, AgentPublicKeys]:
    """What the credentials service knows of each agent; nothing while it does not run."""
    try:
        async with session.credentials() as channel:
            answer = await CredentialServiceStub(channel).ListAgents(credentials_pb.ListAgentsRequest())
    except SendenseError:
        return {}
    return {
        each.agent_id: AgentPublicKeys(each.signing_public_key, each.sealing_public_key)
        for each in answer.agents
    }
