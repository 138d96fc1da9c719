# SPDX-License-Identifier: Apache-2.0
"""`sendense-credentials restore`: puts a backup in the place of the database.

For a service that does not run. Before anything is changed, every password of the backup is tried with the
keys at hand. What is there is moved aside, never removed. Leases do not come back: one that was used since
would open its password again.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from pathlib import Path

import sqlalchemy as sa

from sendense.common.v1.reason_pb2 import Reason
from sendense_common import audit_log
from sendense_common.errors import SendenseError
from sendense_common.paths import CredentialsPaths, private_dir
from sendense_common.service import only_one
from sendense_credentials.catalog import agents, copies, credentials, open_catalog
from sendense_credentials.catalog.tables import leases
from sendense_credentials.domain.agent import Agent
from sendense_credentials.domain.clock import system_clock
from sendense_credentials.domain.credential import Credential
from sendense_credentials.key_options import KeyOptions
from sendense_credentials.vault import Keyring
from sendense_credentials.vault.envelope import unwrap_data_key


async def restore(paths: CredentialsPaths, keys: KeyOptions, copy: Path, *, after_loss: bool) -> str:
    """Puts `copy` in place; what was done, for people.

    Args:
        paths: of the service.
        keys: where they are.
        copy: the backup.
        after_loss: also when passwords of it do not open; those have to be given anew.

    Raises:
        SendenseError: INVALID_REQUEST when it is no backup, INTERNAL when it is of a newer version,
            SERVICE_UNAVAILABLE when the service runs, CREDENTIAL_UNREADABLE with the keys that are missing,
            KEY_PROVIDER_….
    """
    copies.check(copy)
    private_dir(paths.state)
    with only_one(paths.state / "credentials.lock", "credentials service"):
        new = paths.database_file.with_name(f".{paths.database_file.name}.new")
        _remove(new)
        new.touch(mode=0o600)
        try:
            shutil.copyfile(copy, new)
            async with keys.opened(system_clock) as keyring, open_catalog(new) as catalog:
                await catalog.run(lambda connection: connection.execute(sa.delete(leases)).close())
                kept = await catalog.run(credentials.listed)
                known = await catalog.run(agents.listed)
                unreadable = await _unreadable(kept, keyring)
            if unreadable and not after_loss:
                raise _keys_missing(copy, unreadable)
            await _put_in_place(paths, new, copy)
        finally:
            _remove(new)
    return _told(kept, known, unreadable)


async def _unreadable(kept: list[Credential], keyring: Keyring) -> dict[str, list[str]]:
    """Names of passwords that do not open, by key."""
    found: dict[str, list[str]] = defaultdict(list)
    for each in kept:
        try:
            await unwrap_data_key(each.envelope, each.credential_id, each.version, keyring)
        except SendenseError as error:
            if error.reason != Reason.REASON_CREDENTIAL_UNREADABLE:
                raise
            found[each.envelope.key_id].append(each.name)
    return found


async def _put_in_place(paths: CredentialsPaths, new: Path, copy: Path) -> None:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    async with (
        audit_log.opened(paths.audit_log_dir, "credentials"),
        audit_log.recorded("key.restore", subject=str(copy), actor=f"local:{os.getuid()}"),
    ):
        for suffix in ("", "-wal", "-shm"):
            there = paths.database_file.with_name(paths.database_file.name + suffix)
            if there.exists():
                there.rename(there.with_name(f"{there.name}.before-{stamp}"))
        new.rename(paths.database_file)
        directory = os.open(paths.state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _keys_missing(copy: Path, unreadable: dict[str, list[str]]) -> SendenseError:
    lines = [f"{key_id} ({', '.join(names)})" for key_id, names in sorted(unreadable.items())]
    return SendenseError(
        Reason.REASON_CREDENTIAL_UNREADABLE,
        f"{copy} is of no use with these keys; it needs, for the passwords named: {'; '.join(lines)}",
        remedy="Restore the key file of that time (--key-file F), or configure the provider that has them. "
        "If they are lost: restore --after-loss, and give those passwords anew.",
    )


def _told(kept: list[Credential], known: list[Agent], unreadable: dict[str, list[str]]) -> str:
    lost = sum(map(len, unreadable.values()))
    return (
        f"restored {len(kept)} passwords"
        + (f", of which {lost} do not open and have to be given anew" if lost else "")
        + f". Agents that may get passwords again: {', '.join(each.agent_id for each in known) or 'none'}. "
        "Remove those that were revoked since the backup was made.\n"
    )


def _remove(new: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        new.with_name(new.name + suffix).unlink(missing_ok=True)
