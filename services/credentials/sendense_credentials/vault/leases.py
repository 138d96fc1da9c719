# SPDX-License-Identifier: Apache-2.0
"""Issuing, ending and redeeming leases."""

from __future__ import annotations

import logging
import uuid

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import telemetry
from sendense_common.errors import SendenseError
from sendense_common.keys import Redemption, seal
from sendense_credentials.catalog import Catalog, Connection, agents, credentials, leases
from sendense_credentials.domain.agent import Agent
from sendense_credentials.domain.clock import Clock
from sendense_credentials.domain.credential import Credential
from sendense_credentials.domain.lease import (
    KEPT_AFTER_EXPIRY_US,
    LIFETIME_US,
    Lease,
    is_signed_now,
    operation_name,
    refusal,
)
from sendense_credentials.vault.credentials import not_found
from sendense_credentials.vault.envelope import disclose
from sendense_credentials.vault.local_keys import LocalKeys

log = logging.getLogger(__name__)


class LeaseVault:
    """Leases for the hub, and their redemption for agents."""

    def __init__(self, catalog: Catalog, keys: LocalKeys, clock: Clock) -> None:
        self._catalog = catalog
        self._keys = keys
        self._clock = clock

    async def issue(self, credential_id: str, agent_id: str, operation: int, subject_id: str) -> Lease:
        """A new lease.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND, AGENT_UNKNOWN.
        """
        now_us = self._clock()
        lease = Lease(
            lease_id=str(uuid.uuid4()),
            credential_id=credential_id,
            agent_id=agent_id,
            operation=operation,
            subject_id=subject_id,
            expire_time_us=now_us + LIFETIME_US,
        )

        def transaction(connection: Connection) -> None:
            leases.forget_expired(connection, now_us - KEPT_AFTER_EXPIRY_US)
            if credentials.find(connection, credential_id) is None:
                raise not_found(credential_id)
            if agents.find(connection, agent_id) is None:
                raise agent_unknown(agent_id)
            leases.insert(connection, lease)

        await self._catalog.run(transaction)
        log.info(
            "issued lease %s: credential %s, agent %s, %s for %r",
            lease.lease_id,
            credential_id,
            agent_id,
            operation_name(operation),
            subject_id,
        )
        return lease

    async def revoke(self, lease_id: str) -> None:
        """Ends a lease that was not used; no matter if there is none."""
        if await self._catalog.run(lambda connection: leases.end(connection, lease_id)):
            log.info("ended lease %s unused", lease_id)

    async def redeem(self, redemption: Redemption, signature: bytes) -> bytes:
        """Uses up a lease and returns its secret, sealed to the agent.

        Raises:
            SendenseError: AGENT_UNKNOWN, SIGNATURE_INVALID, LEASE_INVALID, LEASE_EXPIRED,
                CREDENTIAL_UNREADABLE.
        """
        agent = await self._catalog.run(lambda connection: agents.find(connection, redemption.agent_id))
        if agent is None:
            raise agent_unknown(redemption.agent_id)
        self._check_signature(agent, redemption, signature)
        now_us = self._clock()

        def transaction(connection: Connection) -> Credential | SendenseError:
            credential_id = leases.use_up(
                connection,
                lease_id=redemption.lease_id,
                agent_id=redemption.agent_id,
                operation=redemption.operation,
                now_us=now_us,
            )
            found = credentials.find(connection, credential_id) if credential_id else None
            return found or refusal(leases.find(connection, redemption.lease_id), redemption, now_us)

        credential = await self._catalog.run(transaction)
        if isinstance(credential, SendenseError):
            raise credential
        # Used up from here on, whatever happens: an answer that is lost needs a new lease.
        with telemetry.span("open credential", **{"sendense.credential_id": credential.credential_id}):
            plaintext = disclose(
                credential.envelope, credential.credential_id, credential.version, self._keys
            )
            sealed = seal(plaintext, agent.keys, redemption)
        log.info(
            "lease %s redeemed by agent %s: credential %s version %d, %s",
            redemption.lease_id,
            redemption.agent_id,
            credential.credential_id,
            credential.version,
            operation_name(redemption.operation),
        )
        return sealed

    def _check_signature(self, agent: Agent, redemption: Redemption, signature: bytes) -> None:
        if not is_signed_now(redemption, self._clock()):
            raise SendenseError(
                Reason.REASON_SIGNATURE_INVALID,
                f"the request of agent {agent.agent_id} was signed more than 5 minutes off this clock",
                remedy="Set the clocks of the site and the centre (NTP).",
                site=agent.agent_id,
            )
        if not agent.keys.verify(signature, redemption.signed_bytes):
            raise SendenseError(
                Reason.REASON_SIGNATURE_INVALID,
                f"the request was not signed with the key of agent {agent.agent_id}",
                remedy="If the agent has new keys, remove it from the credentials service and register them.",
                site=agent.agent_id,
            )


def agent_unknown(agent_id: str) -> SendenseError:
    """AGENT_UNKNOWN."""
    return SendenseError(
        Reason.REASON_AGENT_UNKNOWN,
        f"the credentials service does not know agent {agent_id}",
        remedy="Register the site's public keys with the credentials service.",
        site=agent_id,
    )
