# SPDX-License-Identifier: Apache-2.0
"""Envelope encryption of a secret: AES-256-GCM under a data key of its own, wrapped by a key-encryption key.

Both layers authenticate the record's identity, so that no part of one record opens in the place of another,
nor an old version's in the place of a newer one. Bringing the data key under another key-encryption key
leaves the secret as it is, and closed: the key under which it was enclosed stays part of its identity, as a
name.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_credentials.domain.credential import Envelope
from sendense_credentials.vault.identity import Record
from sendense_credentials.vault.key_provider import WrappedKey

NONCE_BYTES = 12
"""What AES-GCM is made for; precedes every ciphertext."""


class Wraps(Protocol):
    """Wraps under the active key."""

    async def wrap(self, data_key: bytes, record: Record) -> WrappedKey:
        """See `KeyProvider`."""


class Unwraps(Protocol):
    """Unwraps what any of its keys has wrapped."""

    async def unwrap(self, wrapped: WrappedKey, record: Record) -> bytes:
        """See `KeyProvider`."""


class Rewraps(Protocol):
    """Brings a wrapped key under the active key."""

    async def rewrap(self, wrapped: WrappedKey, record: Record) -> WrappedKey:
        """See `KeyProvider`."""


async def enclose(plaintext: bytes, credential_id: str, version: int, keys: Wraps) -> Envelope:
    """The plaintext in an envelope for this version of this credential."""
    record = Record(credential_id, version)
    data_key = AESGCM.generate_key(256)
    wrapped = await keys.wrap(data_key, record)
    nonce = os.urandom(NONCE_BYTES)
    return Envelope(
        key_id=wrapped.key_id,
        wrapped_key=wrapped.data,
        ciphertext=nonce + AESGCM(data_key).encrypt(nonce, plaintext, record.of_secret(wrapped.key_id)),
        first_key_id=wrapped.key_id,
    )


async def disclose(envelope: Envelope, credential_id: str, version: int, keys: Unwraps) -> bytes:
    """What `enclose` was given.

    Raises:
        SendenseError: CREDENTIAL_UNREADABLE when the key is missing or anything was altered; KEY_PROVIDER_…
    """
    data_key = await unwrap_data_key(envelope, credential_id, version, keys)
    identity = Record(credential_id, version).of_secret(envelope.first_key_id)
    nonce, ciphertext = envelope.ciphertext[:NONCE_BYTES], envelope.ciphertext[NONCE_BYTES:]
    try:
        return AESGCM(data_key).decrypt(nonce, ciphertext, identity)
    except (InvalidTag, ValueError):
        raise SendenseError(
            Reason.REASON_CREDENTIAL_UNREADABLE,
            f"the stored secret of credential {credential_id} was altered",
            remedy="Restore the database from its backup, or rotate the credential.",
            credential=credential_id,
        ) from None


async def unwrap_data_key(envelope: Envelope, credential_id: str, version: int, keys: Unwraps) -> bytes:
    """The key of an envelope; proves that the key-encryption key is the right one.

    Raises:
        SendenseError: as for `KeyProvider.unwrap`.
    """
    return await keys.unwrap(
        WrappedKey(envelope.key_id, envelope.wrapped_key), Record(credential_id, version)
    )


async def rewrapped(envelope: Envelope, credential_id: str, version: int, keys: Rewraps) -> Envelope:
    """The envelope with its data key under the active key.

    Raises:
        SendenseError: as for `KeyProvider.unwrap`.
    """
    wrapped = await keys.rewrap(
        WrappedKey(envelope.key_id, envelope.wrapped_key), Record(credential_id, version)
    )
    return dataclasses.replace(envelope, key_id=wrapped.key_id, wrapped_key=wrapped.data)
