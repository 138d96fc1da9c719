# SPDX-License-Identifier: Apache-2.0
"""The transit provider: key-encryption keys in OpenBao or Vault. They never leave the server.

Each version of the transit key is a key of its own here. Each data key is bound to its record: by the
context, where the transit key is a derived one, and then re-wrapping happens within the server; else by
associated data, which `rewrap` does not know, so that re-wrapping unwraps and wraps.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import hvac
from hvac import exceptions

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError, invalid
from sendense_credentials.domain.clock import Clock
from sendense_credentials.domain.key import Key
from sendense_credentials.vault.identity import Record
from sendense_credentials.vault.key_provider import WrappedKey
from sendense_credentials.vault.transit_session import TransitOptions, TransitSession, unavailable_for

log = logging.getLogger(__name__)

T = TypeVar("T")

_WITHIN_S = 12.0
"""More than one request may take: a token may have to be fetched first."""
_LOOK_AFTER_TOKEN_EVERY_S = 5.0
_THREADS = 4
_AEAD = {"aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"}
_VERSION = re.compile(r"[a-z]+:v(\d+):")
_SECOND_US = 1_000_000


@dataclass(frozen=True)
class _TransitKey:
    """What the server says of the key."""

    derived: bool
    create_times_us: dict[int, int]
    """By version; those that still decrypt."""
    latest: int


class TransitKeys:
    """A `KeyProvider`; made by `open_transit`."""

    kind = "transit"

    def __init__(self, session: TransitSession) -> None:
        self._session = session
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="transit")
        options = session.options
        self._mount, self._key = options.mount, options.key
        self._prefix = f"transit:{options.mount}/{options.key}"
        self._derived: bool | None = None

    @property
    def place(self) -> str:
        """Address, mount and key."""
        return self._session.place

    @property
    def token_end_us(self) -> int | None:
        """See `KeyProvider`."""
        return self._session.token_end_us

    def owns(self, key_id: str) -> bool:
        """A version of this transit key."""
        return key_id.startswith(f"{self._prefix}:v")

    async def active_key_id(self) -> str:
        """The newest version, also when somebody else made it."""
        return self._id((await self._read()).latest)

    async def keys(self) -> list[Key]:
        """The newest first."""
        found = (await self._read()).create_times_us
        return [Key(self._id(version), found[version]) for version in sorted(found, reverse=True)]

    async def wrap(self, data_key: bytes, record: Record) -> WrappedKey:
        """See `KeyProvider`."""
        binding = await self._binding(record)
        answer = await self._ask(
            f"update {self._mount}/encrypt/{self._key}",
            lambda client: client.secrets.transit.encrypt_data(
                self._key, plaintext=_base64(data_key), mount_point=self._mount, **binding
            ),
        )
        return self._wrapped(answer["data"]["ciphertext"])

    async def unwrap(self, wrapped: WrappedKey, record: Record) -> bytes:
        """See `KeyProvider`."""
        binding = await self._binding(record)
        with self._unreadable(wrapped):
            answer = await self._ask(
                f"update {self._mount}/decrypt/{self._key}",
                lambda client: client.secrets.transit.decrypt_data(
                    self._key, ciphertext=_text(wrapped), mount_point=self._mount, **binding
                ),
            )
            return base64.b64decode(answer["data"]["plaintext"], validate=True)

    async def rewrap(self, wrapped: WrappedKey, record: Record) -> WrappedKey:
        """See `KeyProvider`."""
        binding = await self._binding(record)
        if "context" not in binding:
            return await self.wrap(await self.unwrap(wrapped, record), record)
        with self._unreadable(wrapped):
            answer = await self._ask(
                f"update {self._mount}/rewrap/{self._key}",
                lambda client: client.secrets.transit.rewrap_data(
                    self._key, ciphertext=_text(wrapped), mount_point=self._mount, **binding
                ),
            )
            return self._wrapped(answer["data"]["ciphertext"])

    async def add_key(self) -> str:
        """A new version of the transit key."""
        await self._ask(
            f"update {self._mount}/keys/{self._key}/rotate",
            lambda client: client.secrets.transit.rotate_key(self._key, mount_point=self._mount),
        )
        return await self.active_key_id()

    async def drop_key(self, key_id: str) -> None:
        """Is for the server's administrators."""
        oldest = int(key_id.rpartition(":v")[2]) + 1
        raise invalid(
            "key_id",
            f"{key_id} is dropped at its server, not here",
            remedy=f"bao write {self._mount}/keys/{self._key}/config min_decryption_version={oldest}",
        )

    async def keep_token(self) -> None:
        """Renews the token while there is time; never returns."""
        told = ""
        while True:
            try:
                await self._in_thread(self._session.keep_token)
                told = ""
            except (SendenseError, exceptions.InvalidRequest) as error:
                if str(error) != told:
                    log.error("the token could not be renewed: %s", error)
                told = str(error)
            await asyncio.sleep(_LOOK_AFTER_TOKEN_EVERY_S)

    def close(self) -> None:
        """Ends threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    async def _read(self) -> _TransitKey:
        answer = await self._ask(
            f"read {self._mount}/keys/{self._key}",
            lambda client: client.secrets.transit.read_key(self._key, mount_point=self._mount),
        )
        data = answer["data"]
        if data["type"] not in _AEAD or data.get("convergent_encryption"):
            raise SendenseError(
                Reason.REASON_KEY_PROVIDER_FORBIDDEN,
                f"the key {self._mount}/keys/{self._key} is of type {data['type']}, which cannot bind what "
                "it encrypts to a record",
                remedy="Use one of type aes256-gcm96.",
            )
        oldest = max(int(data["min_decryption_version"]), int(data.get("min_available_version") or 0))
        times = {int(version): int(time) * _SECOND_US for version, time in data["keys"].items()}
        found = _TransitKey(
            derived=bool(data["derived"]),
            create_times_us={version: time for version, time in times.items() if version >= oldest},
            latest=int(data["latest_version"]),
        )
        self._derived = found.derived
        return found

    async def _binding(self, record: Record) -> dict[str, str]:
        """What a data key is bound to its record with."""
        derived = (await self._read()).derived if self._derived is None else self._derived
        return {"context" if derived else "associated_data": _base64(record.of_data_key(self._prefix))}

    async def _ask(self, doing: str, call: Callable[[hvac.Client], Any]) -> dict[str, Any]:
        return await self._in_thread(lambda: self._session.ask(doing, call))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(_WITHIN_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise unavailable_for(self._session.options.address, _WITHIN_S) from None

    @contextlib.contextmanager
    def _unreadable(self, wrapped: WrappedKey) -> Iterator[None]:
        """A request that the server cannot make sense of is a record that does not open."""
        try:
            yield
        except exceptions.InvalidRequest as error:
            raise SendenseError(
                Reason.REASON_CREDENTIAL_UNREADABLE,
                f"key {wrapped.key_id} does not open the record: {'; '.join(error.errors or ())}",
                remedy="The record was altered, or the key is another one of the same name, or too old for "
                "its min_decryption_version. Restore them, or rotate the credential.",
                key=wrapped.key_id,
            ) from error

    def _wrapped(self, ciphertext: str) -> WrappedKey:
        found = _VERSION.match(ciphertext)
        assert found, "a ciphertext of transit begins with its version"
        return WrappedKey(self._id(int(found[1])), ciphertext.encode())

    def _id(self, version: int) -> str:
        return f"{self._prefix}:v{version}"


@contextlib.asynccontextmanager
async def open_transit(options: TransitOptions, clock: Clock) -> AsyncIterator[TransitKeys]:
    """The provider, and its token renewed, for the block. Asks nothing yet: the server may come later."""
    keys = TransitKeys(TransitSession(options, clock))
    renewing = asyncio.create_task(keys.keep_token())
    try:
        yield keys
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        keys.close()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _text(wrapped: WrappedKey) -> str:
    """Any bytes may stand in a record that was altered."""
    return wrapped.data.decode("ascii", errors="replace")
