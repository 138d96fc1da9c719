# SPDX-License-Identifier: Apache-2.0
"""Which vCenter a password may be sent to: the one that the operator bound it to, whatever the hub says.

A hub that was taken over could otherwise name a host of its own, with a certificate of its own.
"""

from __future__ import annotations

import logging

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.credential_service_pb2 import Endpoint
from sendense_agent.vsphere import VcenterTarget
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)


def bound_target(access: VcenterAccess, endpoint: Endpoint | None) -> VcenterTarget:
    """The vCenter to log in to.

    Args:
        access: what the hub says.
        endpoint: what came with the password; None for one that was stored before passwords were bound.

    Raises:
        SendenseError: VCENTER_NOT_AS_BOUND when the two differ, INVALID_REQUEST.
    """
    said = VcenterTarget.of(access)
    if endpoint is None:
        log.warning(
            "the credential of vCenter %s is bound to no address: bind it with "
            "`sendense vcenter change %s --address HOST --ca-file FILE`",
            said.name,
            said.name,
        )
        return said
    bound = VcenterTarget(
        said.name, endpoint.host, endpoint.port, endpoint.ca_pem, endpoint.certificate_sha256
    )
    differing = [
        name
        for name, differs in (
            (f"the address {said.host}:{said.port} instead of {bound.host}:{bound.port}",
             (said.host.lower(), said.port) != (bound.host.lower(), bound.port)),
            ("another authority", said.ca_pem.split() != bound.ca_pem.split()),
            ("another certificate", said.certificate_sha256 != bound.certificate_sha256),
        )
        if differs
    ]  # fmt: skip
    if differing:
        raise SendenseError(
            Reason.REASON_VCENTER_NOT_AS_BOUND,
            f"for vCenter {said.name} the hub names {' and '.join(differing)}, which is not what "
            "the operator bound its password to; nothing was sent there",
            remedy="If the vCenter has changed, this tells both: "
            f"`sendense vcenter change {said.name} --address HOST --ca-file FILE`. If nobody "
            "changed it, find out who changed the hub.",
            vcenter=said.name,
            host=said.host,
        )
    return bound
