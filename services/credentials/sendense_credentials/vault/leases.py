# SPDX-License-Identifier: Apache-2.0
"""Issuing, ending and redeeming leases."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import audit_log, telemetry
from sendense_common.errors import SendenseError
from sendense_common.keys import Redemption, seal
from sendense_credentials.catalog import Catalog, Connection, agents, credentials, grants, leases
from sendense_credentials.domain.agent import Agent
from sendense_credentials.domain.clock import Clock
from sendense_credentials.domain.credential import Credential
from sendense_credentials.domain.lease import (
    KEPT_AFTER_EXPIRY_US,
    LIFETIME_US,
    Lease,
    operation_name,
    refusal,
    seconds_off,
)
from sendense_credentials.vault.credentials import agent_unknown, not_found, not_granted
from sendense_credentials.vault.envelope import disclose
from sendense_credentials.vault.keyring import Keyring

log = logging.getLogger(__name__)

# Before the signature was checked, anybody may say that it is this agent.
_UNPROVEN = frozenset({Reason.REASON_AGENT_UNKNOWN, Reason.REASON_SIGNATURE_INVALID})
# In the metadata: nor do keys prove it that were replaced, for somebody else may have had them.
_REPLACED_KEY = "replaced_key"


class LeaseVault:
    """Leases for the hub, and their redemption for agents."""

    def __init__(self, catalog: Catalog, keys: Keyring, clock: Clock) -> None:
        self._catalog = catalog
        self._keys = keys
        self._clock = clock

    async def issue(self, credential_id: str, agent_id: str, operation: int, subject_id: str) -> Lease:
        """A new lease.

        Raises:
            SendenseError: CREDENTIAL_NOT_FOUND, AGENT_UNKNOWN, CREDENTIAL_NOT_GRANTED.
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
            credential = credentials.find(connection, credential_id)
            if credential is None:
                raise not_found(credential_id)
            if agents.find(connection, agent_id) is None:
                raise agent_unknown(agent_id)
            if not grants.exists(connection, credential_id, agent_id):
                raise not_granted(credential, agent_id)
            leases.insert(connection, lease)
            audit_log.record_blocking("lease.issue", subject=lease.lease_id, actor="hub", **_facts(lease))

        try:
            await self._catalog.run(transaction)
        except SendenseError as error:
            facts = {**_facts(lease), "reason": error.reason_name}
            await audit_log.record("lease.issue", outcome="refused", actor="hub", **facts)
            raise
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
        now_us, cause = self._clock(), "the hub gave it back: what it was for is over"

        def transaction(connection: Connection) -> bool:
            ended = leases.end(connection, lease_id, now_us, cause)
            if ended:
                audit_log.record_blocking("lease.end", subject=lease_id, actor="hub")
            return ended

        if await self._catalog.run(transaction):
            log.info("ended lease %s unused", lease_id)

    async def redeem(self, redemption: Redemption, signature: bytes) -> bytes:
        """Uses up a lease and returns its secret, sealed to the agent.

        Raises:
            SendenseError: AGENT_UNKNOWN, SIGNATURE_INVALID, CLOCKS_DIFFER, LEASE_INVALID, LEASE_USED,
                LEASE_REVOKED, LEASE_EXPIRED, CREDENTIAL_UNREADABLE; AGENT_KEYS_REPLACED when the agent got
                new keys since the lease was issued, or signed with those before.
        """
        try:
            return await self._redeem(redemption, signature)
        except SendenseError as error:
            unproven = error.reason in _UNPROVEN or _REPLACED_KEY in error.metadata
            who = "unproven" if unproven else "agent"
            await audit_log.record(
                "lease.redeem",
                subject=redemption.lease_id,
                outcome="refused",
                actor=f"{who}:{redemption.agent_id}",
                operation=operation_name(redemption.operation),
                reason=error.reason_name,
            )
            raise

    async def _redeem(self, redemption: Redemption, signature: bytes) -> bytes:
        agent = await self._catalog.run(lambda connection: agents.find(connection, redemption.agent_id))
        if agent is None:
            raise agent_unknown(redemption.agent_id)
        self._check_signature(agent, redemption, signature)
        now_us = self._clock()

        def transaction(connection: Connection) -> Credential | SendenseError:
            # Since the signature was checked, the agent may have got other keys: the old open nothing more.
            now = agents.find(connection, redemption.agent_id)
            if now is None:
                raise agent_unknown(redemption.agent_id)
            if now.keys != agent.keys:
                raise _not_signed_by(now, redemption, signature)
            used = leases.use_up(
                connection,
                lease_id=redemption.lease_id,
                credential_id=redemption.credential_id,
                agent_id=redemption.agent_id,
                operation=redemption.operation,
                now_us=now_us,
            )
            found = credentials.find(connection, redemption.credential_id) if used else None
            lease = leases.find(connection, redemption.lease_id)
            if found is None or lease is None:
                return refusal(lease, redemption, now_us)
            who = f"agent:{redemption.agent_id}"
            audit_log.record_blocking("lease.redeem", subject=lease.lease_id, actor=who, **_facts(lease))
            return found

        credential = await self._catalog.run(transaction)
        if isinstance(credential, SendenseError):
            raise credential
        # Used up from here on, whatever happens: an answer that is lost needs a new lease.
        with telemetry.span("open credential", **{"sendense.credential_id": credential.credential_id}):
            sealed = seal(await self._disclosed(credential), agent.keys, redemption)
        log.info(
            "lease %s redeemed by agent %s: credential %s version %d, %s",
            redemption.lease_id,
            redemption.agent_id,
            credential.credential_id,
            credential.version,
            operation_name(redemption.operation),
        )
        return sealed

    async def _disclosed(self, credential: Credential) -> bytes:
        """What it holds, also when its key is rotated and dropped after it was read."""
        try:
            return await disclose(
                credential.envelope, credential.credential_id, credential.version, self._keys
            )
        except SendenseError as error:
            if error.reason != Reason.REASON_CREDENTIAL_UNREADABLE:
                raise
            identity = credential.credential_id
            now = await self._catalog.run(lambda connection: credentials.find(connection, identity))
            # Another version is another password: this lease was used up before it was there.
            same = now is not None and now.version == credential.version
            if now is None or not same or now.envelope == credential.envelope:
                raise
            return await disclose(now.envelope, now.credential_id, now.version, self._keys)

    def _check_signature(self, agent: Agent, redemption: Redemption, signature: bytes) -> None:
        if not agent.keys.verify(signature, redemption.signed_bytes):
            raise _not_signed_by(agent, redemption, signature)
        if off_s := seconds_off(redemption, self._clock()):
            way = "ahead of" if off_s > 0 else "behind"
            raise SendenseError(
                Reason.REASON_CLOCKS_DIFFER,
                f"the clock of site {agent.agent_id} is {abs(off_s)} s {way} the credentials service's, "
                "more than the 5 minutes that are allowed",
                remedy="Set the clocks of the site and the centre (NTP).",
                site=agent.agent_id,
            )


def _not_signed_by(agent: Agent, redemption: Redemption, signature: bytes) -> SendenseError:
    if agent.signed_with_replaced_key(signature, redemption.signed_bytes):
        return SendenseError(
            Reason.REASON_AGENT_KEYS_REPLACED,
            f"agent {agent.agent_id} has new keys, and the request was signed with those before",
            remedy="The agent takes up its new keys within seconds of their approval; if it does not, run "
            "the line of its invitation at the site again.",
            site=agent.agent_id,
            replaced_key="signing",
        )
    return SendenseError(
        Reason.REASON_SIGNATURE_INVALID,
        f"the request was not signed with the key of agent {agent.agent_id}",
        remedy="If the agent has new keys, remove it from the credentials service and register them.",
        site=agent.agent_id,
    )


def _facts(lease: Lease) -> dict[str, Any]:
    """For the audit log."""
    return {
        "credential_id": lease.credential_id,
        "agent": lease.agent_id,
        "operation": operation_name(lease.operation),
        "purpose": lease.subject_id,
    }
