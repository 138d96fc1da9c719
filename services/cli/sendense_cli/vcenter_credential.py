# SPDX-License-Identifier: Apache-2.0
"""Which credential is a vCenter's: the one that bears its name at the credentials service.

The hub's word is only compared with it. A hub that was taken over could otherwise name another credential,
and have a new password go to an agent or to a host of its own.
"""

from __future__ import annotations

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1 import credential_service_pb2 as pb
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceStub
from sendense.hub.v1 import vcenter_service_pb2 as hub_pb
from sendense.hub.v1.vcenter_service_pb2_grpc import VcenterServiceStub
from sendense_cli.session import Session
from sendense_common.errors import SendenseError

_PREFIX = "vcenter/"


def credential_name(vcenter: str) -> str:
    """Of a vCenter's credential."""
    return _PREFIX + vcenter


def vcenter_name(credential: pb.Credential) -> str:
    """Of a credential's vCenter."""
    return credential.name.removeprefix(_PREFIX)


async def own_or_none(session: Session, vcenter: str) -> pb.Credential | None:
    """The credential of a vCenter; None when there is none. The hub is not asked."""
    async with session.credentials() as channel:
        listed = await CredentialServiceStub(channel).ListCredentials(pb.ListCredentialsRequest())
    name = credential_name(vcenter)
    return next((each for each in listed.credentials if each.name == name), None)


async def own(session: Session, vcenter: str) -> pb.Credential:
    """The same, which must be there.

    Raises:
        SendenseError: CREDENTIAL_NOT_FOUND.
    """
    found = await own_or_none(session, vcenter)
    if found is None:
        raise SendenseError(
            Reason.REASON_CREDENTIAL_NOT_FOUND,
            f"the credentials service keeps no credential {credential_name(vcenter)!r}",
            remedy="`sendense vcenter list` shows all vCenters. If its password is lost: "
            f"`sendense vcenter remove {vcenter}`, then add it again. If it shares "
            "another one's, which only calls of the API make: call the API.",
            vcenter=vcenter,
        )
    return found


async def agreed(session: Session, vcenter: str) -> pb.Credential:
    """The same, when the hub uses this one too: else what is changed would not be what is used.

    Raises:
        SendenseError: VCENTER_NOT_FOUND, CREDENTIAL_NOT_FOUND; VCENTER_NOT_AS_BOUND when the hub names
            another.
    """
    said = await _said_by_hub(session, vcenter)
    found = await own(session, vcenter)
    _compare(found, said)
    return found


async def _said_by_hub(session: Session, vcenter: str) -> hub_pb.Vcenter:
    async with session.hub() as hub:
        listed = await VcenterServiceStub(hub).ListVcenters(hub_pb.ListVcentersRequest())
    for each in listed.vcenters:
        if each.name == vcenter:
            return each
    raise SendenseError(
        Reason.REASON_VCENTER_NOT_FOUND,
        f"there is no vCenter {vcenter!r}",
        remedy="`sendense vcenter list` shows them all.",
        vcenter=vcenter,
    )


def _compare(found: pb.Credential, said: hub_pb.Vcenter) -> None:
    if said.credential_id == found.credential_id:
        return
    raise SendenseError(
        Reason.REASON_VCENTER_NOT_AS_BOUND,
        f"for vCenter {said.name} the hub names credential {said.credential_id or 'none'}, but "
        f"{found.name!r} at the credentials service is {found.credential_id}; nothing was changed",
        remedy=f"If the hub's catalog was restored from an old copy: `sendense vcenter remove {said.name}`, "
        "then add it again. Else find out who changed the hub; "
        f"`sendense vcenter ungrant {said.name} --agent SITE` does not ask it.",
        vcenter=said.name,
        credential=found.credential_id,
    )
