# SPDX-License-Identifier: Apache-2.0
"""The local provider: key-encryption keys from a file of the service's own (`key_file`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed
from sendense_credentials.domain.key import Key
from sendense_credentials.vault.envelope import NONCE_BYTES
from sendense_credentials.vault.identity import Record
from sendense_credentials.vault.key_file import KeyFile, read_key_file, write_key_file
from sendense_credentials.vault.key_provider import WrappedKey

PREFIX = "kek-"
"""What IDs of this provider's keys begin with."""


class LocalKeys:
    """The key-encryption keys of a file. They show neither in `repr` nor in errors."""

    kind = "local"

    def __init__(self, file: Path, content: KeyFile) -> None:
        """Made by `load_key_file`."""
        self._file = file
        self._take(content)

    token_end_us: int | None = None

    @property
    def place(self) -> str:
        """The file."""
        return str(self._file)

    def owns(self, key_id: str) -> bool:
        """By how it is called, or because it is there."""
        return key_id.startswith(PREFIX) or key_id in self._ciphers

    async def active_key_id(self) -> str:
        """From the file."""
        return self._active

    async def keys(self) -> list[Key]:
        """The newest first."""
        return [Key(key_id, self._create_times_us[key_id]) for key_id in reversed(self._ciphers)]

    async def wrap(self, data_key: bytes, record: Record) -> WrappedKey:
        """Nonce and AES-256-GCM."""
        nonce = os.urandom(NONCE_BYTES)
        identity = record.of_data_key(self._active)
        return WrappedKey(
            self._active, nonce + self._ciphers[self._active].encrypt(nonce, data_key, identity)
        )

    async def unwrap(self, wrapped: WrappedKey, record: Record) -> bytes:
        """See `KeyProvider`."""
        key_id, data = wrapped.key_id, wrapped.data
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SendenseError(
                Reason.REASON_CREDENTIAL_UNREADABLE,
                f"key-encryption key {key_id} is not in the key file",
                remedy="Restore the key file from its backup, or rotate the credential.",
                key=key_id,
            )
        try:
            return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], record.of_data_key(key_id))
        except (InvalidTag, ValueError):
            raise SendenseError(
                Reason.REASON_CREDENTIAL_UNREADABLE,
                f"key {key_id} does not open the record: it was altered, or the key is another one",
                remedy="Restore database and key file from their backups, or rotate the credential.",
                key=key_id,
            ) from None

    async def rewrap(self, wrapped: WrappedKey, record: Record) -> WrappedKey:
        """See `KeyProvider`."""
        return await self.wrap(await self.unwrap(wrapped, record), record)

    async def add_key(self) -> str:
        """See `KeyProvider`; OUTPUT_UNWRITABLE when the file cannot be replaced."""
        await self._replace(lambda content: content.with_new_key())
        return self._active

    async def drop_key(self, key_id: str) -> None:
        """See `KeyProvider`."""
        await self._replace(lambda content: content.without(key_id))

    async def _replace(self, change: Callable[[KeyFile], KeyFile]) -> None:
        """On disk first, then in use: nothing is ever under a key that a power cut could take.

        Cancelled, it still ends with file and memory alike, and the caller's lock is held until then: a
        thread that goes on writing alone would put an older file over the next one.
        """

        def replace() -> KeyFile:
            content = read_key_file(self._file)
            self._compare(content)
            changed = change(content)
            write_key_file(self._file, changed)
            return changed

        async def replace_and_take() -> None:
            self._take(await asyncio.to_thread(replace))

        await undisturbed(replace_and_take())

    def _compare(self, content: KeyFile) -> None:
        """Refuses to write over a file that lacks keys in use, or has another one active.

        The only copy of a key may be at stake; and what memory says can be dropped, the file may need.
        """
        found = {key_id: AESGCM(key) for key_id, key in content.keys.items()}
        lacking = [key_id for key_id, cipher in self._ciphers.items() if not _same(cipher, found.get(key_id))]
        if not lacking and content.active == self._active:
            return
        what = "it lacks keys that are in use" if lacking else f"{content.active} is active in it"
        raise SendenseError(
            Reason.REASON_CREDENTIAL_UNREADABLE,
            f"{self._file} was changed while the service runs: {what}",
            remedy="Put the former file back; or restart the service, if this one is right.",
        )

    def _take(self, content: KeyFile) -> None:
        self._active = content.active
        self._ciphers = {key_id: AESGCM(key) for key_id, key in content.keys.items()}
        self._create_times_us = {key_id: content.create_time_us(key_id) for key_id in content.keys}


def load_key_file(path: Path) -> LocalKeys:
    """The keys of a file.

    Raises:
        SendenseError: CREDENTIAL_UNREADABLE when there is no usable key; INTERNAL when others may read it.
    """
    return LocalKeys(path, read_key_file(path))


def _same(one: AESGCM, other: AESGCM | None) -> bool:
    nonce = os.urandom(NONCE_BYTES)
    try:
        return other is not None and other.decrypt(nonce, one.encrypt(nonce, b"", None), None) == b""
    except InvalidTag:
        return False
