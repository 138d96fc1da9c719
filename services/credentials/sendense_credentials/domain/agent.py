# SPDX-License-Identifier: Apache-2.0
"""An agent as this service knows it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from sendense_common.errors import invalid
from sendense_common.keys import AgentPublicKeys

_AGENT_ID = re.compile(r"[a-z0-9-]{1,63}")


@dataclass(frozen=True)
class Agent:
    """An agent and its public keys."""

    agent_id: str
    """The site's name."""
    keys: AgentPublicKeys
    """As an operator gave them."""
    replaced_signing_key: bytes | None = field(default=None, compare=False)
    """The Ed25519 public key before these: it only tells why a request is refused. None: it had no others."""

    def signed_with_replaced_key(self, signature: bytes, message: bytes) -> bool:
        """Whether it is this agent that signed, as it was before it got these keys."""
        if self.replaced_signing_key is None:
            return False
        return replace(self.keys, signing=self.replaced_signing_key).verify(signature, message)


def check_agent_id(agent_id: str) -> str:
    """`agent_id`, if it can be one.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    if not _AGENT_ID.fullmatch(agent_id):
        raise invalid("agent_id", "must be 1 to 63 lower-case letters, digits and dashes")
    return agent_id
