# SPDX-License-Identifier: Apache-2.0
"""The file of the local provider's key-encryption keys.

JSON: `format_version` 1, `active` (the ID of the key for new envelopes), `keys` (ID → base64 of 32 bytes),
`created` (ID → time in UTC; may be missing). It is made once, by an explicit command, and must be backed up
apart from the database: without it the database is useless, which is the point of it. It is only ever
replaced whole.
"""

from __future__ import annotations

import base64
import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.private_file import create_private_file, read_private_file, replace_private_file

_FORMAT_VERSION = 1
_KEY_BYTES = 32
_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)


@dataclass(frozen=True)
class KeyFile:
    """What is in it."""

    active: str
    """Of `keys`."""
    keys: Mapping[str, bytes] = field(repr=False)
    """By ID."""
    created: Mapping[str, datetime.datetime]
    """By ID, as far as it is known."""

    def create_time_us(self, key_id: str) -> int | None:
        """When a key was made."""
        found = self.created.get(key_id)
        return None if found is None else (found - _EPOCH) // _MICROSECOND

    def with_new_key(self) -> KeyFile:
        """One more key, and that one active."""
        key_id = f"kek-{secrets.token_hex(4)}"
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        return KeyFile(
            key_id,
            {**self.keys, key_id: AESGCM.generate_key(_KEY_BYTES * 8)},
            {**self.created, key_id: now},
        )

    def without(self, dropped: str) -> KeyFile:
        """One key less."""
        return KeyFile(
            self.active,
            {key_id: key for key_id, key in self.keys.items() if key_id != dropped},
            {key_id: time for key_id, time in self.created.items() if key_id != dropped},
        )

    def to_bytes(self) -> bytes:
        """The whole file."""
        content = {
            "format_version": _FORMAT_VERSION,
            "active": self.active,
            "keys": {key_id: base64.b64encode(key).decode() for key_id, key in self.keys.items()},
            "created": {key_id: time.isoformat() for key_id, time in self.created.items()},
        }
        return json.dumps(content, indent=2).encode() + b"\n"


def create_key_file(path: Path) -> bool:
    """Makes a key file with one new key; whether it did (False: one is there, and stays)."""
    return create_private_file(path, KeyFile("", {}, {}).with_new_key().to_bytes())


def read_key_file(path: Path) -> KeyFile:
    """What is in a file.

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


def write_key_file(path: Path, content: KeyFile) -> None:
    """Replaces the file; it is on disk when this returns.

    Raises:
        SendenseError: OUTPUT_UNWRITABLE; the file is as it was.
    """
    try:
        replace_private_file(path, content.to_bytes())
    except OSError as error:
        raise SendenseError(
            Reason.REASON_OUTPUT_UNWRITABLE,
            f"the key file {path} cannot be replaced: {error.strerror}",
            remedy="The service needs to write in its directory; in a container, mount the directory, "
            "not the file.",
        ) from error


def _parse(data: bytes) -> KeyFile:
    content = json.loads(data)
    keys = {key_id: base64.b64decode(key, validate=True) for key_id, key in content["keys"].items()}
    created = {
        key_id: datetime.datetime.fromisoformat(time).astimezone(datetime.UTC)
        for key_id, time in content.get("created", {}).items()
    }
    if (
        content["format_version"] != _FORMAT_VERSION
        or content["active"] not in keys
        or any(len(key) != _KEY_BYTES for key in keys.values())
    ):
        raise ValueError("unusable")
    return KeyFile(content["active"], keys, created)


def _no_key(problem: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_CREDENTIAL_UNREADABLE,
        problem,
        remedy="Restore it from its backup. New installation: `sendense-credentials init-key --state DIR`.",
    )
