# SPDX-License-Identifier: Apache-2.0
"""What an agent signs to redeem a lease, and how the answer is sealed to it.

Request: Ed25519 over `Redemption.signed_bytes`. Answer: HPKE (RFC 9180), base mode, DHKEM(X25519,
HKDF-SHA256), HKDF-SHA256, AES-256-GCM, with `Redemption.info` as its info: an answer to another lease,
credential, agent, operation or request does not open. The plaintext is padded, so that the hub, which carries
it, does not learn the length of a password.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys._canonical import canonical
from sendense_common.keys.agent_keys import AgentKeys, AgentPublicKeys

NONCE_BYTES = 16

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_PAD_TO_BYTES = 512
_END_OF_TEXT = b"\x80"


@dataclass(frozen=True)
class Redemption:
    """One request to redeem a lease, without its signature."""

    lease_id: str
    credential_id: str
    """As the hub named it; the credentials service refuses another one than the lease's."""
    agent_id: str
    operation: int
    """A `sendense.credentials.v1.Operation`."""
    sign_time_ns: int
    """When it was signed, nanoseconds since 1970 UTC."""
    nonce: bytes
    """`NONCE_BYTES` random bytes."""

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return canonical(
            "sendense redeem lease v2",
            self.lease_id,
            self.credential_id,
            self.agent_id,
            self.operation,
            self.sign_time_ns,
            self.nonce,
        )

    @property
    def info(self) -> bytes:
        """What the sealed answer is bound to."""
        return canonical(
            "sendense sealed secret v2",
            self.lease_id,
            self.credential_id,
            self.agent_id,
            self.operation,
            self.nonce,
        )


def seal(plaintext: bytes, to: AgentPublicKeys, redemption: Redemption) -> bytes:
    """The answer to a redemption: only the agent opens it, and only as the answer to this request."""
    padded = plaintext + _END_OF_TEXT
    padded += bytes(-len(padded) % _PAD_TO_BYTES)
    return _SUITE.encrypt(padded, X25519PublicKey.from_public_bytes(to.sealing), info=redemption.info)


def open_sealed(sealed: bytes, keys: AgentKeys, redemption: Redemption) -> bytes:
    """What `seal` was given.

    Raises:
        SendenseError: CREDENTIAL_UNREADABLE when it was altered, or sealed to other keys or another request.
    """
    try:
        padded = _SUITE.decrypt(sealed, keys.sealing, info=redemption.info)
    except InvalidTag:
        raise SendenseError(
            Reason.REASON_CREDENTIAL_UNREADABLE,
            f"the answer for lease {redemption.lease_id} was altered, or not sealed to {redemption.agent_id}",
            remedy="Compare this agent's key fingerprint with the one that the credentials service has.",
        ) from None
    return padded.rstrip(b"\0").removesuffix(_END_OF_TEXT)
