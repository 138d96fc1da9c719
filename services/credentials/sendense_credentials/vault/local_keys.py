# SPDX-License-Identifier: Apache-2.0
"""Key-encryption keys from a file of the service's own.

The file is JSON: `format_version` 1, `active` (the ID of the key for new envelopes), `keys` (ID → base64 of
32 bytes). It is made once, by an explicit command, and must be backed up apart from the database: without it
the database is useless, which is the point of it.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.private_file import create_private_file, read_private_file

_FORMAT_VERSION = 1
_KEY_BYTES = 32
NONCE_BYTES = 12
"""What AES-GCM is made for; precedes every ciphertext."""


class LocalKeys:
    """The key-encryption keys. They show neither in `repr` nor in errors."""

    def __init__(self, active_key_id: str, keys: Mapping[str, bytes]) -> None:
        self.active_key_id = active_key_id
        """Wraps new data keys."""
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}

    def wrap(self, data_key: bytes, identity: bytes) -> bytes:
        """`data_key` under the active key, bound to the identity of its record."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._ciphers[self.active_key_id].encrypt(nonce, data_key, identity)

    def unwrap(self, key_id: str, wrapped_key: bytes, identity: bytes) -> bytes:
        """What `wrap` was given.

        Raises:
            SendenseError: CREDENTIAL_UNREADABLE when the key is missing, is another one under the same ID,
                or the wrapped key or its identity was altered.
        """
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SendenseError(
                Reason.REASON_CREDENTIAL_UNREADABLE,
                f"key-encryption key {key_id} is not in the key file",
                remedy="Restore the key file from its backup, or rotate the credential.",
                key=key_id,
            )
        try:
            return cipher.decrypt(wrapped_key[:NONCE_BYTES], wrapped_key[NONCE_BYTES:], identity)
        except (InvalidTag, ValueError):
            raise SendenseError(
                Reason.REASON_CREDENTIAL_UNREADABLE,
                f"key {key_id} does not open the record: it was altered, or the key is another one",
                remedy="Restore database and key file from their backups, or rotate the credential.",
                key=key_id,
            ) from None


def create_key_file(path: Path) -> bool:
    """Makes a key file with one new key; whether it did (False: one is there, and stays)."""
    key_id = f"kek-{secrets.token_hex(4)}"
    content = {
        "format_version": _FORMAT_VERSION,
        "active": key_id,
        "keys": {key_id: base64.b64encode(AESGCM.generate_key(_KEY_BYTES * 8)).decode()},
    }
    return create_private_file(path, json.dumps(content, indent=2).encode() + b"\n")


def load_key_file(path: Path) -> LocalKeys:
    """The keys of a file.

    Raises:
        SendenseError: CREDENTIAL_UNREADABLE when there is no usable key; INTERNAL when others may read it.
    """
    try:
        return _parse(read_private_file(path))
    except FileNotFoundError:
        raise _no_key(f"there is no key-encryption key: {path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Not its words: a parser quotes what it could not parse.
        what = error.strerror if isinstance(error, OSError) else "it is not a key file"
        raise _no_key(f"there is no key-encryption key in {path}: {what}") from None


def _parse(data: bytes) -> LocalKeys:
    content = json.loads(data)
    keys = {key_id: base64.b64decode(key, validate=True) for key_id, key in content["keys"].items()}
    if (
        content["format_version"] != _FORMAT_VERSION
        or content["active"] not in keys
        or any(len(key) != _KEY_BYTES for key in keys.values())
    ):
        raise ValueError("unusable")
    return LocalKeys(content["active"], keys)


def _no_key(problem: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_CREDENTIAL_UNREADABLE,
        problem,
        remedy="Restore it from its backup. New installation: sendense-credentials init-key --state DIR",
    )
