# SPDX-License-Identifier: Apache-2.0
"""The right of one agent to open one credential for one operation, once, for minutes."""

from __future__ import annotations

from dataclasses import dataclass

from sendense.common.v1.reason_pb2 import Reason
from sendense.credentials.v1.operation_pb2 import Operation
from sendense_common.errors import SendenseError
from sendense_common.keys import Redemption

LIFETIME_US = 5 * 60 * 1_000_000
"""How long a lease can be redeemed: an agent does so first thing in an operation."""

CLOCK_TOLERANCE_US = 5 * 60 * 1_000_000
"""How far the time of signing may be off, in either direction."""

KEPT_AFTER_EXPIRY_US = 24 * 3600 * 1_000_000
"""How long the service can still say that a lease has expired or was used."""


@dataclass(frozen=True)
class Lease:
    """A lease as it is kept. Not secret: only its agent can use it."""

    lease_id: str
    """UUID."""
    credential_id: str
    """What it opens."""
    agent_id: str
    """For whom."""
    operation: int
    """For what: an `Operation`."""
    subject_id: str
    """The job or request it was issued for."""
    expire_time_us: int
    """When it ends unused."""
    redeem_time_us: int | None = None
    """When it was used."""
    end_time_us: int | None = None
    """When it was ended, unused."""
    end_cause: str = ""
    """Why, for people, as "the hub gave it back"."""
    end_reason: Reason.ValueType = Reason.REASON_LEASE_REVOKED
    """Why, for programs: what redeeming it is refused with."""

    def describe(self) -> str:
        """For people."""
        return f"agent {self.agent_id} has a lease for {operation_name(self.operation)} ({self.subject_id})"


def operation_name(operation: int) -> str:
    """`BACKUP` for OPERATION_BACKUP; digits for one that a newer peer made."""
    found = Operation.DESCRIPTOR.values_by_number.get(operation)
    return found.name.removeprefix("OPERATION_") if found else str(operation)


def seconds_off(redemption: Redemption, now_us: int) -> int:
    """How far the time of signing is ahead of ours, negative behind; 0 when it is near enough."""
    off_us = redemption.sign_time_ns // 1000 - now_us
    return 0 if abs(off_us) <= CLOCK_TOLERANCE_US else off_us // 1_000_000


def refusal(lease: Lease | None, redemption: Redemption, now_us: int) -> SendenseError:
    """Why a correctly signed request could not use up the lease it names.

    An agent learns nothing about leases of others.
    """
    what = f"lease {redemption.lease_id}"
    reason = Reason.REASON_LEASE_INVALID
    if lease is None or lease.agent_id != redemption.agent_id:
        problem = f"{what} does not exist, or not for agent {redemption.agent_id}"
    elif lease.credential_id != redemption.credential_id:
        problem = f"{what} was not issued for credential {redemption.credential_id}"
    elif lease.operation != redemption.operation:
        problem = (
            f"{what} was issued for {operation_name(lease.operation)}, "
            f"not for {operation_name(redemption.operation)}"
        )
    elif lease.redeem_time_us is not None:
        reason, problem = Reason.REASON_LEASE_USED, f"{what} was used already"
    elif lease.end_time_us is not None:
        reason, problem = lease.end_reason, f"{what} was ended: {lease.end_cause}"
    else:
        late_s = (now_us - lease.expire_time_us) // 1_000_000
        reason, problem = Reason.REASON_LEASE_EXPIRED, f"{what} expired {late_s} s ago"
    return SendenseError(
        reason,
        problem,
        remedy="Start the operation again: it gets a new lease.",
        lease=redemption.lease_id,
    )
