# SPDX-License-Identifier: Apache-2.0
"""SiteService."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import sqlalchemy as sa

from sendense.hub.v1 import site_service_pb2 as pb
from sendense.hub.v1.site_service_pb2_grpc import SiteServiceServicer
from sendense_common import audit_log
from sendense_common.keys import parse_ssh_key
from sendense_hub.catalog import sites
from sendense_hub.jobs.enrolment import Enrolment
from sendense_hub.jobs.workshop import Workshop
from sendense_hub.rpc import checks

_Context = grpc.aio.ServicerContext[Any, Any]


class SiteService(SiteServiceServicer):
    """The sites and their agents."""

    def __init__(self, workshop: Workshop, enrolment: Enrolment) -> None:
        self._workshop = workshop
        self._enrolment = enrolment

    async def RegisterSite(
        self, request: pb.RegisterSiteRequest, context: _Context
    ) -> pb.RegisterSiteResponse:
        """See the contract."""
        name = checks.site("name", request.name)
        key, fingerprint = parse_ssh_key("ssh_public_key", request.ssh_public_key)

        def register(connection: sa.Connection) -> pb.Site:
            site = sites.register(connection, name, key, fingerprint)
            audit_log.record_blocking("site.register", subject=name, ssh_fingerprint=fingerprint)
            return site

        site = await self._workshop.catalog.run(register)
        self._workshop.sites.revoked.discard(name)
        return pb.RegisterSiteResponse(site=site)

    async def ListSites(self, request: pb.ListSitesRequest, context: _Context) -> pb.ListSitesResponse:
        """See the contract."""
        listed = await self._workshop.catalog.run(sites.listed)
        found = await asyncio.gather(*(self._workshop.sites.look(site.name) for site in listed))
        for site, agent in zip(listed, found, strict=True):
            site.connected = agent is not None
            site.agent_version = agent.version if agent else ""
        return pb.ListSitesResponse(sites=listed)

    async def RevokeSite(self, request: pb.RevokeSiteRequest, context: _Context) -> pb.RevokeSiteResponse:
        """See the contract."""
        name = checks.site("name", request.name)
        # A caller that hangs up leaves nothing half done.
        site, failed = await asyncio.shield(self._enrolment.revoke(name))
        return pb.RevokeSiteResponse(site=site, failed_job_ids=failed)
