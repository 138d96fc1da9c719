# SPDX-License-Identifier: Apache-2.0
"""All providers of key-encryption keys at hand: one wraps, the others only open what is under their keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_credentials.vault.identity import Record
from sendense_credentials.vault.key_provider import KeyProvider, WrappedKey


class Keyring:
    """Finds the provider of a key by the key's ID."""

    def __init__(self, active: KeyProvider, others: Sequence[KeyProvider] = ()) -> None:
        self.active = active
        """Wraps."""
        self.others = others
        """Only unwrap."""
        self.changing = asyncio.Lock()
        """Held from choosing a key until what is under it is stored, and while keys are made or dropped: else
        a record could be stored under a key that was dropped in between. Opening needs no lock."""

    async def wrap(self, data_key: bytes, record: Record) -> WrappedKey:
        """See `KeyProvider`."""
        return await self.active.wrap(data_key, record)

    async def unwrap(self, wrapped: WrappedKey, record: Record) -> bytes:
        """See `KeyProvider`."""
        return await self._owner(wrapped.key_id).unwrap(wrapped, record)

    async def rewrap(self, wrapped: WrappedKey, record: Record) -> WrappedKey:
        """See `KeyProvider`; from whichever provider to the active one."""
        owner = self._owner(wrapped.key_id)
        if owner is self.active:
            return await owner.rewrap(wrapped, record)
        return await self.active.wrap(await owner.unwrap(wrapped, record), record)

    def _owner(self, key_id: str) -> KeyProvider:
        for provider in (self.active, *self.others):
            if provider.owns(key_id):
                return provider
        raise SendenseError(
            Reason.REASON_CREDENTIAL_UNREADABLE,
            f"key-encryption key {key_id} is of a provider that is not configured",
            remedy="Give the options of its provider as well, as before (--key-file F, or --transit-…); "
            "or rotate the credential.",
            key=key_id,
        )
