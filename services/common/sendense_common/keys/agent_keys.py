# SPDX-License-Identifier: Apache-2.0
"""An agent's two key pairs, and the one line in which an operator carries the public halves to the centre."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.private_file import create_private_file, read_private_file

_KEY_BYTES = 32
_LINE_TYPE = "sendense-agent-keys"
_PEM_BLOCK = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n?", re.DOTALL)


@dataclass(frozen=True)
class AgentPublicKeys:
    """The public halves of an agent's keys."""

    signing: bytes
    """Ed25519, 32 bytes."""
    sealing: bytes
    """X25519, 32 bytes."""

    def __post_init__(self) -> None:
        """Refuses what could not be used later.

        Raises:
            ValueError: wrong length, or a sealing key of low order, to which nothing can be sealed.
        """
        for name, key in (("signing", self.signing), ("sealing", self.sealing)):
            if len(key) != _KEY_BYTES:
                raise ValueError(f"the {name} key has {len(key)} bytes instead of {_KEY_BYTES}")
        try:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(self.sealing))
        except ValueError:
            raise ValueError("the sealing key is of low order") from None

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Whether the agent signed exactly this message."""
        try:
            Ed25519PublicKey.from_public_bytes(self.signing).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @property
    def fingerprint(self) -> str:
        """Digest of both keys, for people to compare, in the form that SSH uses: "SHA256:…"."""
        digest = hashlib.sha256(self.signing + self.sealing).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def to_line(self, comment: str = "") -> str:
        """Both keys as one line of text, in the manner of an SSH public key."""
        return " ".join(
            filter(None, [_LINE_TYPE, base64.b64encode(self.signing + self.sealing).decode(), comment])
        )

    @classmethod
    def from_line(cls, line: str) -> AgentPublicKeys:
        """The keys of a line that `to_line` made; its comment is ignored.

        Raises:
            SendenseError: INVALID_REQUEST when it is not such a line.
        """
        words = line.split()
        try:
            if len(words) < 2 or words[0] != _LINE_TYPE:
                raise ValueError(f'it does not start with "{_LINE_TYPE}" and the keys')
            both = base64.b64decode(words[1], validate=True)
            return cls(both[:_KEY_BYTES], both[_KEY_BYTES:])
        except (ValueError, binascii.Error) as error:
            raise SendenseError(
                Reason.REASON_INVALID_REQUEST,
                f"not the public keys of an agent: {error}",
                remedy=f'It is one line of the form "{_LINE_TYPE} AAAA… site".',
            ) from error


class AgentKeys:
    """An agent's private keys. They show neither in `repr` nor in errors."""

    def __init__(self, signing: Ed25519PrivateKey, sealing: X25519PrivateKey) -> None:
        self._signing = signing
        self.sealing = sealing
        self.public = AgentPublicKeys(
            signing.public_key().public_bytes_raw(), sealing.public_key().public_bytes_raw()
        )

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._signing.sign(message)

    @classmethod
    def generate(cls) -> AgentKeys:
        """New keys, in memory only."""
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    def to_pem(self) -> bytes:
        """Both keys, unencrypted (PKCS#8)."""
        return b"".join(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            for key in (self._signing, self.sealing)
        )

    @classmethod
    def from_pem(cls, pem: bytes) -> AgentKeys:
        """What `to_pem` made.

        Raises:
            ValueError: it is something else.
        """
        found = [serialization.load_pem_private_key(block, None) for block in _PEM_BLOCK.findall(pem)]
        match found:
            case [Ed25519PrivateKey() as signing, X25519PrivateKey() as sealing]:
                return cls(signing, sealing)
        raise ValueError("it is not an Ed25519 key followed by an X25519 key")


def ensure_agent_keys(path: Path) -> AgentKeys:
    """The keys kept at `path` (mode 0600); made if the file is missing.

    Raises:
        SendenseError: INTERNAL when what is there is not such keys, or others may read it.
    """
    if not path.exists():
        create_private_file(path, AgentKeys.generate().to_pem())
    return load_agent_keys(path)


def load_agent_keys(path: Path) -> AgentKeys:
    """The keys kept at `path`.

    Raises:
        SendenseError: INTERNAL when they are missing, are not such keys, or others may read them.
    """
    try:
        return AgentKeys.from_pem(read_private_file(path))
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SendenseError(
            Reason.REASON_INTERNAL,
            f"{path} does not hold this agent's keys: {error}",
            remedy="Restore it from a copy, or remove it for new keys and register the agent again.",
        ) from error
