# SPDX-License-Identifier: Apache-2.0
"""CredentialService, for operators."""

from __future__ import annotations

import logging
from typing import Any

import grpc

import sendense.credentials.v1.credential_service_pb2 as pb
from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.credential_service_pb2_grpc import CredentialServiceServicer
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_credentials.catalog import Catalog, Connection, agents
from sendense_credentials.domain.agent import check_agent_id
from sendense_credentials.domain.clock import Clock
from sendense_credentials.rpc.wire import from_agent, from_credential, to_agent, to_uuid
from sendense_credentials.vault import CredentialVault
from sendense_credentials.vault.plaintext import from_message

log = logging.getLogger(__name__)

_Context = grpc.aio.ServicerContext[Any, Any]


class CredentialServicer(CredentialServiceServicer):
    """Keeps credentials and the public keys of agents."""

    def __init__(self, vault: CredentialVault, catalog: Catalog, clock: Clock) -> None:
        self._vault = vault
        self._catalog = catalog
        self._clock = clock

    async def StoreCredential(
        self, request: pb.StoreCredentialRequest, context: _Context
    ) -> pb.StoreCredentialResponse:
        """Stores a new credential."""
        request_id = to_uuid("request_id", request.request_id)
        agent_ids = [check_agent_id(each) for each in request.agent_ids]
        stored = await self._vault.store(request_id, request.name, from_message(request.secret), agent_ids)
        return pb.StoreCredentialResponse(credential=from_credential(stored))

    async def ListCredentials(
        self, request: pb.ListCredentialsRequest, context: _Context
    ) -> pb.ListCredentialsResponse:
        """Lists them, without secrets."""
        return pb.ListCredentialsResponse(credentials=map(from_credential, await self._vault.listed()))

    async def RotateCredential(
        self, request: pb.RotateCredentialRequest, context: _Context
    ) -> pb.RotateCredentialResponse:
        """Replaces a secret."""
        credential_id = to_uuid("credential_id", request.credential_id)
        rotated = await self._vault.rotate(credential_id, from_message(request.secret))
        return pb.RotateCredentialResponse(credential=from_credential(rotated))

    async def BindCredential(
        self, request: pb.BindCredentialRequest, context: _Context
    ) -> pb.BindCredentialResponse:
        """Binds it to another vCenter's address, certificate, or both."""
        credential_id = to_uuid("credential_id", request.credential_id)
        wanted = request.endpoint
        bound, where = await self._vault.bind(
            credential_id,
            host=wanted.host,
            port=wanted.port,
            ca_pem=wanted.ca_pem,
            certificate_sha256=wanted.certificate_sha256,
        )
        endpoint = pb.Endpoint(host=where.host, port=where.port)
        if where.ca_pem:
            endpoint.ca_pem = where.ca_pem
        else:
            endpoint.certificate_sha256 = where.certificate_sha256
        return pb.BindCredentialResponse(credential=from_credential(bound), endpoint=endpoint)

    async def GrantCredential(
        self, request: pb.GrantCredentialRequest, context: _Context
    ) -> pb.GrantCredentialResponse:
        """Lets an agent open it."""
        credential_id = to_uuid("credential_id", request.credential_id)
        granted = await self._vault.grant(credential_id, check_agent_id(request.agent_id))
        return pb.GrantCredentialResponse(credential=from_credential(granted))

    async def UngrantCredential(
        self, request: pb.UngrantCredentialRequest, context: _Context
    ) -> pb.UngrantCredentialResponse:
        """Lets an agent open it no more."""
        credential_id = to_uuid("credential_id", request.credential_id)
        left = await self._vault.ungrant(credential_id, check_agent_id(request.agent_id))
        return pb.UngrantCredentialResponse(credential=from_credential(left))

    async def DeleteCredential(
        self, request: pb.DeleteCredentialRequest, context: _Context
    ) -> pb.DeleteCredentialResponse:
        """Removes a credential, its grants and its leases."""
        await self._vault.delete(to_uuid("credential_id", request.credential_id))
        return pb.DeleteCredentialResponse()

    async def RegisterAgent(
        self, request: pb.RegisterAgentRequest, context: _Context
    ) -> pb.RegisterAgentResponse:
        """Makes an agent's public keys known."""
        agent = to_agent(request.agent)
        now_us = self._clock()

        def register(connection: Connection) -> bool:
            new, ended = agents.register(connection, agent, now_us, replace=request.replace)
            if new:
                audit_log.record_blocking(
                    "agent.register",
                    subject=agent.agent_id,
                    lease_keys_fingerprint=agent.keys.fingerprint,
                    leases_ended=ended,
                )
            return new

        if await self._catalog.run(register):
            log.info("registered agent %s with keys %s", agent.agent_id, agent.keys.fingerprint)
        return pb.RegisterAgentResponse()

    async def ListAgents(self, request: pb.ListAgentsRequest, context: _Context) -> pb.ListAgentsResponse:
        """Lists the known agents."""
        return pb.ListAgentsResponse(agents=map(from_agent, await self._catalog.run(agents.listed)))

    async def RemoveAgent(self, request: pb.RemoveAgentRequest, context: _Context) -> pb.RemoveAgentResponse:
        """Forgets an agent, its grants and its leases."""
        agent_id = check_agent_id(request.agent_id)

        def remove(connection: Connection) -> None:
            if not agents.delete(connection, agent_id):
                raise SendenseError(
                    Reason.REASON_SITE_NOT_FOUND,
                    f"the credentials service knows no agent {agent_id}",
                    site=agent_id,
                )
            audit_log.record_blocking("agent.remove", subject=agent_id)

        await self._catalog.run(remove)
        log.info("removed agent %s", agent_id)
        return pb.RemoveAgentResponse()
