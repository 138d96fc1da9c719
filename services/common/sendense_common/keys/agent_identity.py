# SPDX-License-Identifier: Apache-2.0
"""All public keys of one agent, and the one fingerprint that two people compare."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from sendense_common.errors import invalid
from sendense_common.keys._canonical import canonical
from sendense_common.keys.agent_keys import AgentPublicKeys

_SSH_TYPE = "ssh-ed25519"
_SSH_HEAD = b"\x00\x00\x00\x0b" + _SSH_TYPE.encode() + b"\x00\x00\x00\x20"
_SSH_KEY_BYTES = 32


@dataclass(frozen=True)
class AgentIdentity:
    """A site's name and the keys of its agent."""

    site: str
    """The site's name."""
    ssh_public_key: str
    """`ssh-ed25519 AAAA…`, without a comment; see `parse_ssh_key`."""
    keys: AgentPublicKeys
    """For leases."""

    @property
    def fingerprint(self) -> str:
        """Digest of the name and all three keys, "SHA256:…": a change of any of them shows."""
        blob = base64.b64decode(self.ssh_public_key.split()[1])
        said = canonical("sendense agent v1", self.site, blob, self.keys.signing, self.keys.sealing)
        return _sha256(said)


def parse_ssh_key(field: str, text: str) -> tuple[str, str]:
    """An OpenSSH public key without its comment, and its fingerprint as `ssh-keygen -l` prints it.

    Args:
        field: of the request, for the error.
        text: one line.

    Raises:
        SendenseError: INVALID_REQUEST when it is not an Ed25519 key.
    """
    kind, _, rest = text.strip().partition(" ")
    encoded = rest.split(" ")[0]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except ValueError:  # also binascii.Error
        blob = b""
    if kind != _SSH_TYPE or not blob.startswith(_SSH_HEAD) or len(blob) != len(_SSH_HEAD) + _SSH_KEY_BYTES:
        raise invalid(field, f"must be an OpenSSH public key of type {_SSH_TYPE}")
    # Encoded anew: one key has one spelling.
    return f"{kind} {base64.b64encode(blob).decode()}", _sha256(blob)


def _sha256(data: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
