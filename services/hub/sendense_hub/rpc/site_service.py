# SPDX-License-Identifier: Apache-2.0
"""SiteService."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

import grpc

from sendense.hub.v1 import site_service_pb2 as pb
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceServicer
from sendense_common.errors import invalid
from sendense_hub.catalog import sites
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]
_KEY_TYPE = "ssh-ed25519"


class SiteService(SiteServiceServicer):
    """The sites and their agents."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def RegisterSite(
        self, request: pb.RegisterSiteRequest, context: _Context
    ) -> pb.RegisterSiteResponse:
        """See the contract."""
        name = checks.site("name", request.name)
        key, fingerprint = _parse_key(request.ssh_public_key)
        site = await self._workshop.catalog.run(
            lambda connection: sites.register(connection, name, key, fingerprint)
        )
        return pb.RegisterSiteResponse(site=site)

    async def ListSites(self, request: pb.ListSitesRequest, context: _Context) -> pb.ListSitesResponse:
        """See the contract."""
        listed = await self._workshop.catalog.run(sites.listed)
        found = await asyncio.gather(*(self._workshop.sites.look(site.name) for site in listed))
        for site, agent in zip(listed, found, strict=True):
            site.connected = agent is not None
            site.agent_version = agent.version if agent else ""
        return pb.ListSitesResponse(sites=listed)


def _parse_key(text: str) -> tuple[str, str]:
    """An OpenSSH public key without its comment, and its fingerprint as `ssh-keygen -l` prints it."""
    kind, _, rest = text.strip().partition(" ")
    encoded = rest.split(" ")[0]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except ValueError:  # also binascii.Error
        blob = b""
    head = b"\x00\x00\x00\x0b" + _KEY_TYPE.encode() + b"\x00\x00\x00\x20"
    if kind != _KEY_TYPE or not blob.startswith(head) or len(blob) != len(head) + 32:
        raise invalid("ssh_public_key", f"must be an OpenSSH public key of type {_KEY_TYPE}")
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"{kind} {encoded}", f"SHA256:{digest}"
