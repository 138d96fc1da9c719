# SPDX-License-Identifier: Apache-2.0
"""A user name, a password, and where they may be sent."""

from __future__ import annotations

from dataclasses import dataclass, field

from sendense_common.errors import invalid
from sendense_credentials.domain.endpoint import Endpoint

_USERNAME_CHARACTERS = 256
_PASSWORD_CHARACTERS = 1024


@dataclass(frozen=True)
class Secret:
    """What a credential holds. `repr` shows nothing of it."""

    username: str = field(repr=False)
    """1 to 256 printable characters."""
    password: str = field(repr=False)
    """1 to 1024 characters of any kind, kept exactly: blanks at the ends are part of it."""
    endpoint: Endpoint | None = field(default=None, repr=False)
    """Where it may be sent; None in one that was stored before there were endpoints."""

    def __post_init__(self) -> None:
        """Refuses what is empty or too long.

        Raises:
            SendenseError: INVALID_REQUEST; it names the field and never its content.
        """
        if not 1 <= len(self.username) <= _USERNAME_CHARACTERS:
            raise invalid("secret.username", f"must have 1 to {_USERNAME_CHARACTERS} characters")
        if not self.username.isprintable():
            raise invalid("secret.username", "must not have control characters")
        if not 1 <= len(self.password) <= _PASSWORD_CHARACTERS:
            raise invalid("secret.password", f"must have 1 to {_PASSWORD_CHARACTERS} characters")
