# SPDX-License-Identifier: Apache-2.0
"""What a place that holds key-encryption keys can do.

Keys never leave it. A provider that cannot be asked raises KEY_PROVIDER_UNAVAILABLE or
KEY_PROVIDER_FORBIDDEN; the same call works again when it can, in the same process. What a key does not open
is CREDENTIAL_UNREADABLE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from sendense_credentials.domain.key import Key
from sendense_credentials.vault.identity import Record


@dataclass(frozen=True)
class WrappedKey:
    """A data key under a key-encryption key."""

    key_id: str
    """Which one."""
    data: bytes = field(repr=False)
    """As the provider made it."""


class KeyProvider(Protocol):
    """Holds key-encryption keys, one of them active."""

    @property
    def kind(self) -> str:
        """`local` or `transit`."""

    @property
    def place(self) -> str:
        """Where the keys are, for people."""

    @property
    def token_end_us(self) -> int | None:
        """When what lets this service use the keys ends, if it is not renewed by itself."""

    def owns(self, key_id: str) -> bool:
        """Whether a key of this ID would be this provider's, there or not."""

    async def active_key_id(self) -> str:
        """The key that wraps new data keys."""

    async def keys(self) -> list[Key]:
        """All that can still unwrap."""

    async def wrap(self, data_key: bytes, record: Record) -> WrappedKey:
        """`data_key` under the active key, bound to its record."""

    async def unwrap(self, wrapped: WrappedKey, record: Record) -> bytes:
        """What `wrap` was given.

        Raises:
            SendenseError: CREDENTIAL_UNREADABLE when the key is missing or is another one under the same ID,
                or when the wrapped key or its record was altered.
        """

    async def rewrap(self, wrapped: WrappedKey, record: Record) -> WrappedKey:
        """The same data key under the active key."""

    async def add_key(self) -> str:
        """Makes a new key, active and durable when this returns; the former ones still unwrap."""

    async def drop_key(self, key_id: str) -> None:
        """Forgets a key that is not active. Whoever asks has made sure that nothing needs it."""
