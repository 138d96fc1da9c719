# SPDX-License-Identifier: Apache-2.0
"""The part of the command line that says where key-encryption keys are.

Both providers can be given at once: `--key-provider` says which one wraps, the other one only opens what is
still under its keys. So passwords move from one to the other at a restart, and back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sendense_credentials.domain.clock import Clock
from sendense_credentials.vault import Keyring, load_key_file

if TYPE_CHECKING:
    from sendense_credentials.vault.key_provider import KeyProvider
    from sendense_credentials.vault.transit_session import TransitOptions

_NAMES = {
    "address": "https://HOST[:PORT] of OpenBao or Vault",
    "mount": "path of its transit engine (default: transit)",
    "key": "name of the transit key (default: sendense)",
    "ca-file": "PEM file of the authority that signed its certificate",
    "token-file": "file with a token",
    "role-id-file": "file with the role ID of an AppRole, instead of a token",
    "secret-id-file": "file with a secret ID of it",
    "approle-mount": "path of the AppRole login (default: approle)",
}


@dataclass(frozen=True)
class KeyOptions:
    """Where keys are."""

    provider: str
    """`local` or `transit`: the one that wraps."""
    key_file: Path
    """Of the local provider; with the other one it may be missing."""
    key_file_is_given: bool = False
    """Somebody named it, so it has to be there."""
    transit: TransitOptions | None = None
    """None: not configured."""

    @contextlib.asynccontextmanager
    async def opened(self, clock: Clock) -> AsyncIterator[Keyring]:
        """All providers at hand, for the block.

        Raises:
            SendenseError: the key file is needed and unusable.
        """
        async with contextlib.AsyncExitStack() as held:
            providers: dict[str, KeyProvider] = {}
            if self.provider == "local" or self.key_file_is_given or self.key_file.exists():
                providers["local"] = load_key_file(self.key_file)
            if self.transit is not None:
                # hvac takes a third of a second to import, and most installations have no use for it.
                from sendense_credentials.vault.transit_keys import open_transit  # noqa: PLC0415

                providers["transit"] = await held.enter_async_context(open_transit(self.transit, clock))
            active = providers.pop(self.provider)
            yield Keyring(active, list(providers.values()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options; each has an environment variable, and none is a secret."""
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="F",
        default=_from_environment("key-file"),
        help="key-encryption keys of the local provider (default: STATE/kek.json)",
    )
    parser.add_argument(
        "--key-provider",
        choices=["local", "transit"],
        default=_from_environment("key-provider") or "local",
        help="which one new secrets go to (default: local); the other one, if it is configured too, only "
        "opens what is still under its keys",
    )
    group = parser.add_argument_group("keys in OpenBao or Vault")
    for name, text in _NAMES.items():
        group.add_argument(
            f"--transit-{name}",
            metavar="F" if name.endswith("file") else name.rpartition("-")[2].upper(),
            default=_from_environment(f"transit-{name}"),
            help=text,
        )


def key_options(parser: argparse.ArgumentParser, parsed: argparse.Namespace, key_file: Path) -> KeyOptions:
    """What the command line says; ends the process with usage when it makes no sense."""
    given = {name: getattr(parsed, f"transit_{name.replace('-', '_')}") for name in _NAMES}
    transit = None
    if any(given.values()) or parsed.key_provider == "transit":
        problem = _problem(given)
        if problem:
            parser.error(problem)
        from sendense_credentials.vault.transit_session import TransitOptions  # noqa: PLC0415 - see above

        options: dict[str, Any] = {
            name.replace("-", "_"): Path(value) if name.endswith("file") else value
            for name, value in given.items()
            if value
        }
        transit = TransitOptions(**options)
    return KeyOptions(parsed.key_provider, key_file, parsed.key_file is not None, transit)


def _problem(given: dict[str, str | None]) -> str:
    parts = urlsplit(given["address"] or "")
    if (
        parts.scheme != "https"
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or parts.username
    ):
        return "--transit-address must be https://HOST[:PORT]"
    if not given["ca-file"]:
        return "--transit-ca-file is required: the server's certificate is always verified"
    if not Path(given["ca-file"]).is_file():
        return f"--transit-ca-file: there is no file {given['ca-file']}"
    role = bool(given["role-id-file"]), bool(given["secret-id-file"])
    if role[0] != role[1] or role[0] == bool(given["token-file"]):
        return "give --transit-token-file, or --transit-role-id-file with --transit-secret-id-file"
    return ""


def _from_environment(name: str) -> str | None:
    return os.environ.get(f"SENDENSE_{name.replace('-', '_').upper()}") or None
