# SPDX-License-Identifier: Apache-2.0
"""What hub and agent must have in common to work together, whatever their versions are.

Messages and fields that are only added need no new number: who does not know them leaves them alone. The
newest number grows when the meaning of something changes that both must agree on; the oldest one, when nobody
speaks it any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import sendense_common
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

_FIRST = 1


@dataclass(frozen=True)
class Protocols:
    """Those that somebody speaks: all from the oldest to the newest."""

    oldest: int
    newest: int

    @classmethod
    def said(cls, oldest: int, newest: int) -> Protocols:
        """As a message has them; 0 is what was said before there were numbers."""
        return cls(oldest or _FIRST, newest or _FIRST)

    def __str__(self) -> str:
        return str(self.oldest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


HERE = Protocols(oldest=2, newest=2)
"""What this version of Sendense speaks. Since 2, a password goes only to the vCenter that the operator bound
it to: an agent of before would send it wherever its hub says, and is refused."""


def agreed(theirs: Protocols, *, site: str, their_version: str) -> int:
    """The newest protocol that this hub and an agent have in common.

    Raises:
        SendenseError: VERSION_NOT_SUPPORTED; says which of the two to upgrade.
    """
    common = min(theirs.newest, HERE.newest)
    if common >= max(theirs.oldest, HERE.oldest):
        return common
    older = "agent" if theirs.newest < HERE.oldest else "hub, with its credentials service"
    raise SendenseError(
        Reason.REASON_VERSION_NOT_SUPPORTED,
        f"the agent of site {site!r} is version {their_version or '?'} and speaks protocol {theirs}; this "
        f"hub is version {sendense_common.__version__} and speaks {HERE}",
        remedy=f"Upgrade the {older}.",
        site=site,
        agent_version=their_version,
        hub_version=sendense_common.__version__,
    )


def check(number: int) -> None:
    """Refuses what a hub wants to speak with this agent, and the agent does not.

    Raises:
        SendenseError: VERSION_NOT_SUPPORTED.
    """
    wanted = number or _FIRST
    if not HERE.oldest <= wanted <= HERE.newest:
        older = "hub, with its credentials service" if wanted < HERE.oldest else "agent"
        raise SendenseError(
            Reason.REASON_VERSION_NOT_SUPPORTED,
            f"the hub wants protocol {wanted}; this agent is version {sendense_common.__version__} and "
            f"speaks {HERE}",
            remedy=f"Upgrade the {older}.",
            agent_version=sendense_common.__version__,
        )
