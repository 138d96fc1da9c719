# SPDX-License-Identifier: Apache-2.0
"""Envelope encryption of a secret: AES-256-GCM under a data key of its own, wrapped by a key-encryption key.

Both layers authenticate the record's identity (credential, version, key), so that no part of one record opens
in the place of another, nor an old version's in the place of a newer one.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.keys import canonical
from sendense_credentials.domain.credential import Envelope
from sendense_credentials.vault.local_keys import NONCE_BYTES, LocalKeys


def enclose(plaintext: bytes, credential_id: str, version: int, keys: LocalKeys) -> Envelope:
    """The plaintext in an envelope for this version of this credential."""
    key_id = keys.active_key_id
    data_key = AESGCM.generate_key(256)
    nonce = os.urandom(NONCE_BYTES)
    identity = _identity("secret", credential_id, version, key_id)
    return Envelope(
        key_id=key_id,
        wrapped_key=keys.wrap(data_key, _identity("data key", credential_id, version, key_id)),
        ciphertext=nonce + AESGCM(data_key).encrypt(nonce, plaintext, identity),
    )


def disclose(envelope: Envelope, credential_id: str, version: int, keys: LocalKeys) -> bytes:
    """What `enclose` was given.

    Raises:
        SendenseError: CREDENTIAL_UNREADABLE when the key is missing or anything was altered.
    """
    data_key = unwrap_data_key(envelope, credential_id, version, keys)
    identity = _identity("secret", credential_id, version, envelope.key_id)
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


def unwrap_data_key(envelope: Envelope, credential_id: str, version: int, keys: LocalKeys) -> bytes:
    """The key of an envelope; proves that the key-encryption key is the right one.

    Raises:
        SendenseError: CREDENTIAL_UNREADABLE as for `LocalKeys.unwrap`.
    """
    identity = _identity("data key", credential_id, version, envelope.key_id)
    return keys.unwrap(envelope.key_id, envelope.wrapped_key, identity)


def _identity(what: str, credential_id: str, version: int, key_id: str) -> bytes:
    return canonical(f"sendense credential {what} v1", credential_id, version, key_id)
