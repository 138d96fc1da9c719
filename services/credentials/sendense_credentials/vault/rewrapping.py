# SPDX-License-Identifier: Apache-2.0
"""Brings every credential's data key under the active key, in one small transaction each, while all goes on.

There is no state of a rotation but the records themselves: what is not under the active key has to be
brought there. So it does not matter where it was interrupted, nor why a record is under another key: a
rotation here, one at the provider, or another provider since the last start.
"""

from __future__ import annotations

import asyncio
import logging

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_credentials.catalog import Catalog, Connection, credentials, key_use
from sendense_credentials.vault.envelope import rewrapped
from sendense_credentials.vault.keyring import Keyring

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 600.0
"""A provider may have rotated its key by itself."""
_TRY_AGAIN_S = 15.0


class Rewrapping:
    """The work, and how it stands."""

    def __init__(self, catalog: Catalog, keys: Keyring) -> None:
        self._catalog = catalog
        self._keys = keys
        self._asked = asyncio.Event()
        self.failure: SendenseError | None = None
        """Why the last pass did not reach its end: it tries again."""
        self.unreadable: set[str] = set()
        """Credentials that the last pass could not bring under the active key, because they do not open."""

    def ask(self) -> None:
        """Has the next pass begin now."""
        self._asked.set()

    async def run(self) -> None:
        """One pass after another; never returns."""
        while True:
            self._asked.clear()
            try:
                await self.once()
                self.failure = None
            except SendenseError as error:
                if str(error) != str(self.failure):
                    log.error("re-wrapping waits: %s. %s", error, error.remedy)
                self.failure = error
            except Exception:
                log.exception("defect while re-wrapping")
            try:
                async with asyncio.timeout(_TRY_AGAIN_S if self.failure else _LOOK_AGAIN_S):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def once(self) -> int:
        """Brings all credentials under the key that is active now; how many it brought.

        Raises:
            SendenseError: KEY_PROVIDER_…; what was done so far stays done.
        """
        active = await self._keys.active.active_key_id()
        waiting = await self._catalog.run(lambda connection: key_use.not_under(connection, active))
        unreadable: set[str] = set()
        done = 0
        for credential_id in waiting:
            try:
                done += await self._one(credential_id, active)
            except SendenseError as error:
                if error.reason != Reason.REASON_CREDENTIAL_UNREADABLE:
                    raise
                unreadable.add(credential_id)
                if credential_id not in self.unreadable:
                    log.error("credential %s stays as it is: %s. %s", credential_id, error, error.remedy)
        self.unreadable = unreadable
        if done:
            await self._catalog.forget_old_pages()
            log.info("%d credentials were brought under key %s", done, active)
        return done

    async def _one(self, credential_id: str, active: str) -> bool:
        async with self._keys.changing:
            found = await self._catalog.run(lambda connection: credentials.find(connection, credential_id))
            if found is None or found.envelope.key_id == active:
                return False
            before = found.envelope
            after = await rewrapped(before, credential_id, found.version, self._keys)

            def transaction(connection: Connection) -> bool:
                changed = key_use.rewrap(connection, credential_id, before, after)
                if changed:
                    audit_log.record_blocking(
                        "key.rewrap",
                        subject=after.key_id,
                        actor=audit_log.system_actor(),
                        credential_id=credential_id,
                        before=before.key_id,
                    )
                return changed

            return await self._catalog.run(transaction)
