# SPDX-License-Identifier: Apache-2.0
"""Keys of agents, and what passes between an agent and the credentials service under them.

An agent has two key pairs of its own, apart from its SSH key: Ed25519 signs its requests, X25519 opens what
is sealed to it. The credentials service learns the public halves from an operator, never through the hub.
"""

from sendense_common.keys._canonical import canonical
from sendense_common.keys.agent_identity import AgentIdentity, parse_ssh_key
from sendense_common.keys.agent_keys import AgentKeys, AgentPublicKeys, ensure_agent_keys, load_agent_keys
from sendense_common.keys.lease_seal import NONCE_BYTES, Redemption, open_sealed, seal

__all__ = [
    "NONCE_BYTES",
    "AgentIdentity",
    "AgentKeys",
    "AgentPublicKeys",
    "Redemption",
    "canonical",
    "ensure_agent_keys",
    "load_agent_keys",
    "open_sealed",
    "parse_ssh_key",
    "seal",
]
