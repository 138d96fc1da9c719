# SPDX-License-Identifier: Apache-2.0
"""The credentials service without its process: what a kill would lose is made anew from the disk."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from sendense_credentials.catalog import Catalog, credentials, open_catalog
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.domain.endpoint import Endpoint
from sendense_credentials.domain.secret import Secret
from sendense_credentials.vault import CredentialVault, Keyring, KeyVault, Rewrapping, load_key_file
from sendense_credentials.vault.envelope import disclose

SOMEWHERE = Endpoint("vc.example.net", 443, certificate_sha256=bytes(32))


def secret(password: str) -> Secret:
    return Secret("user", password, SOMEWHERE)


@dataclass
class Rooms:
    """Those that have to do with keys."""

    catalog: Catalog
    keys: Keyring
    vault: CredentialVault
    rewrapping: Rewrapping
    key_vault: KeyVault

    async def texts(self) -> list[bytes]:
        """Every secret, opened."""
        found = await self.catalog.run(credentials.listed)
        return [await disclose(each.envelope, each.credential_id, each.version, self.keys) for each in found]

    async def key_ids(self) -> set[str]:
        """What records are under."""
        return {each.envelope.key_id for each in await self.catalog.run(credentials.listed)}

    async def store(self, name: str) -> str:
        made = await self.vault.store(str(uuid.uuid4()), name, secret(f"password of {name}"), [])
        return made.credential_id


@contextlib.asynccontextmanager
async def opened(directory: Path, keys: Keyring | None = None) -> AsyncIterator[Rooms]:
    """With these keys, or those of the file in the directory."""
    keys = keys or Keyring(load_key_file(directory / "kek.json"))
    async with open_catalog(directory / "credentials.sqlite") as catalog:
        vault = CredentialVault(catalog, keys, system_clock)
        rewrapping = Rewrapping(catalog, keys)
        yield Rooms(catalog, keys, vault, rewrapping, KeyVault(catalog, keys, rewrapping))
