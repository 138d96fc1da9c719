# SPDX-License-Identifier: Apache-2.0
"""Key-encryption keys for operators: which there are, a new one, dropping one that nothing needs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_common.undisturbed import undisturbed
from sendense_credentials.catalog import Catalog, key_use
from sendense_credentials.domain.key import Key, KeyState, KeyUse, uses
from sendense_credentials.vault.keyring import Keyring
from sendense_credentials.vault.rewrapping import Rewrapping

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyReport:
    """How it stands."""

    active_key_id: str
    """Empty: the provider does not answer."""
    uses: list[KeyUse]
    """The active one first."""
    pending_count: int
    """Credentials that are still to be brought under the active key; 0 when nobody says which that is."""
    unreadable_count: int
    """Credentials that no key at hand opens; not in `pending_count`."""
    failure: SendenseError | None
    """Why a provider cannot be asked now."""
    rewrap_failure: SendenseError | None
    """Why the last try to bring credentials under the active key did not get to its end."""


class KeyVault:
    """Keys for operators. No key leaves it."""

    def __init__(self, catalog: Catalog, keys: Keyring, rewrapping: Rewrapping) -> None:
        self._catalog = catalog
        self._keys = keys
        self._rewrapping = rewrapping

    @property
    def kind(self) -> str:
        """Of the provider that wraps."""
        return self._keys.active.kind

    @property
    def place(self) -> str:
        """Where its keys are."""
        return self._keys.active.place

    @property
    def token_end_us(self) -> int | None:
        """When it lets this service use them no more, if that is not put off by itself."""
        return self._keys.active.token_end_us

    async def report(self) -> KeyReport:
        """How it stands; a provider that does not answer is part of it."""
        counts = await self._catalog.run(key_use.counts)
        failure: SendenseError | None = None
        active = ""
        known: list[Key] = []
        silent = []
        for provider in (self._keys.active, *self._keys.others):
            try:
                known += await provider.keys()
                if provider is self._keys.active:
                    active = await provider.active_key_id()
            except SendenseError as error:
                failure = failure or error
                silent.append(provider)
        told = [
            KeyUse(each.key, KeyState.UNKNOWN, each.credential_count)
            if any(provider.owns(each.key.key_id) for provider in silent)
            else each
            for each in uses(active, known, counts)
        ]
        missing = sum(each.credential_count for each in told if each.state is KeyState.MISSING)
        elsewhere = sum(each.credential_count for each in told if each.key.key_id != active)
        unreadable = max(missing, len(self._rewrapping.unreadable))
        return KeyReport(
            active_key_id=active,
            uses=told,
            pending_count=max(0, elsewhere - unreadable) if active else 0,
            unreadable_count=unreadable,
            failure=failure,
            rewrap_failure=self._rewrapping.failure,
        )

    async def rotate(self) -> tuple[str, bool]:
        """Makes a new key active, and has every credential brought under it; its ID, and whether it is new.

        Where credentials wait to be brought under the active key, that is gone on with, and no key is made.
        Cancelled while a key is made, it is made all the same, and recorded so.

        Raises:
            SendenseError: KEY_PROVIDER_…, OUTPUT_UNWRITABLE.
        """
        try:
            async with self._keys.changing:
                active = await self._keys.active.active_key_id()
                waiting = await self._catalog.run(lambda connection: key_use.not_under(connection, active))
                new = not {*waiting} - self._rewrapping.unreadable
                if new:

                    async def make() -> None:
                        nonlocal active
                        async with audit_log.recorded(
                            "key.rotate", subject=self.place, before=active
                        ) as facts:
                            active = await self._keys.active.add_key()
                            facts["key_id"] = active
                        log.info("key %s is active", active)

                    await undisturbed(make())
        finally:
            self._rewrapping.ask()
        return active, new

    async def drop(self, key_id: str) -> None:
        """Forgets a key that no credential is under; once that has begun, it is not cancelled.

        Raises:
            SendenseError: KEY_NOT_FOUND, KEY_IN_USE, OUTPUT_UNWRITABLE.
        """
        async with self._keys.changing:
            if key_id not in {key.key_id for key in await self._keys.active.keys()}:
                raise SendenseError(
                    Reason.REASON_KEY_NOT_FOUND,
                    f"there is no key {key_id} at {self._keys.active.place}",
                    remedy="`sendense credentials key list` shows those that there are.",
                    key=key_id,
                )
            counts = await self._catalog.run(key_use.counts)
            is_active = key_id == await self._keys.active.active_key_id()
            if is_active or key_id in counts:
                why = "is the active key" if is_active else f"has {counts[key_id]} credentials under it"
                raise SendenseError(
                    Reason.REASON_KEY_IN_USE,
                    f"{key_id} {why}",
                    remedy="`sendense credentials key rotate` brings every credential under a new key.",
                    key=key_id,
                )

            async def forget() -> None:
                async with audit_log.recorded("key.drop", subject=key_id):
                    await self._keys.active.drop_key(key_id)
                log.info("dropped key %s", key_id)

            await undisturbed(forget())
