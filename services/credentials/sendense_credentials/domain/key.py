# SPDX-License-Identifier: Apache-2.0
"""Key-encryption keys as people see them: an ID, a state, and how many credentials are under each."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class KeyState(enum.Enum):
    """What a key is good for. Nobody sets it: it follows from the provider and from the records."""

    ACTIVE = "active"
    """New secrets go under it."""
    DECRYPT_ONLY = "decrypt-only"
    """Credentials are still under it, and are being brought under the active one."""
    RETIRED = "retired"
    """No credential is under it. Backups of the database may need it."""
    MISSING = "missing"
    """Credentials are under it, and no provider at hand has it."""
    UNKNOWN = "unknown"
    """Its provider does not answer."""


@dataclass(frozen=True)
class Key:
    """A key that a provider has."""

    key_id: str
    """Unique over all providers."""
    create_time_us: int | None = None
    """Microseconds since 1970, UTC; None when it was not noted."""


@dataclass(frozen=True)
class KeyUse:
    """A key and what it is used for."""

    key: Key
    state: KeyState
    credential_count: int


def uses(active_key_id: str, keys: Sequence[Key], counts: Mapping[str, int]) -> list[KeyUse]:
    """All keys there are or should be, the active one first.

    Args:
        active_key_id: of the provider that wraps.
        keys: of all providers at hand.
        counts: how many credentials are under each key ID.
    """

    def use(key: Key) -> KeyUse:
        count = counts.get(key.key_id, 0)
        if key.key_id == active_key_id:
            return KeyUse(key, KeyState.ACTIVE, count)
        return KeyUse(key, KeyState.DECRYPT_ONLY if count else KeyState.RETIRED, count)

    known = {key.key_id for key in keys}
    missing = [KeyUse(Key(key_id), KeyState.MISSING, counts[key_id]) for key_id in sorted({*counts} - known)]
    ordered = sorted(map(use, keys), key=lambda each: each.state is not KeyState.ACTIVE)
    return ordered + missing
