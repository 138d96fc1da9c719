# SPDX-License-Identifier: Apache-2.0
"""A credential as it is kept: who it is, and its secret in an envelope."""

from __future__ import annotations

from dataclasses import dataclass, field

from sendense_common.errors import invalid

_NAME_CHARACTERS = 128


@dataclass(frozen=True)
class Envelope:
    """A secret under a data key of its own, and that key under a key-encryption key."""

    key_id: str
    """Which key-encryption key it is under now."""
    wrapped_key: bytes = field(repr=False)
    """The data key, as the key's provider wrapped it."""
    ciphertext: bytes = field(repr=False)
    """Nonce and AES-256-GCM of the secret."""
    first_key_id: str
    """Which key it was made under: part of the secret's identity, as a name. The key may be gone."""


@dataclass(frozen=True)
class Credential:
    """A stored credential."""

    credential_id: str
    """UUID."""
    name: str
    """Unique."""
    version: int
    """1, and one more with each rotation."""
    create_time_us: int
    """Microseconds since 1970, UTC."""
    rotate_time_us: int
    """When the present secret came; the same as `create_time_us` before the first rotation."""
    envelope: Envelope
    """The secret, with the endpoint that it is bound to."""
    bound_to: str
    """That endpoint, for people: "HOST:PORT"; empty for one that was stored before there were any."""
    agent_ids: tuple[str, ...] = ()
    """Whom it is granted to, sorted."""


def check_name(name: str) -> str:
    """`name`, if a credential can be called so.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    if not 1 <= len(name) <= _NAME_CHARACTERS or not name.isprintable() or name != name.strip():
        raise invalid(
            "name", f"must have 1 to {_NAME_CHARACTERS} printable characters and no blank at either end"
        )
    return name
