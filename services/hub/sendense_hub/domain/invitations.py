# SPDX-License-Identifier: Apache-2.0
"""What an invitation is, and what comes of its code being shown. Time and randomness are passed in.

The code has 60 random bits and is good for one agent within ten minutes. Whoever guesses has one guess: a
wrong code makes an open invitation useless. Two agents with one code mean that the code went astray: neither
is let in.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, replace

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1 import invitation_service_pb2 as pb
from sendense_common.errors import SendenseError, invalid
from sendense_common.keys import canonical

CODE_FOR_US = 10 * 60 * 1_000_000
"""How long a code can be used."""

APPROVAL_FOR_US = 60 * 60 * 1_000_000
"""How long keys that were shown wait for somebody to compare them."""

# Crockford's: without letters that look like digits. 32 letters, 5 bits each.
_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MISREAD = str.maketrans("OIL", "011", "- ")
_CODE_BYTES, _GROUP = 12, 4

OPEN, PENDING = pb.INVITATION_STATE_OPEN, pb.INVITATION_STATE_PENDING
APPROVED, SPENT = pb.INVITATION_STATE_APPROVED, pb.INVITATION_STATE_SPENT
EXPIRED = pb.INVITATION_STATE_EXPIRED


@dataclass(frozen=True)
class ShownKeys:
    """Public keys of an agent that nobody knows yet."""

    ssh_public_key: str = ""
    """Without a comment."""
    fingerprint: str = ""
    """Of the SSH key."""
    signing: bytes = b""
    sealing: bytes = b""


NO_KEYS = ShownKeys()


@dataclass(frozen=True)
class Invitation:
    """One, as it is kept."""

    site: str
    code_hash: bytes
    state: pb.InvitationState.ValueType
    rotates: bool
    """Whether the site has keys already."""
    create_time_us: int
    expire_time_us: int
    """Of the code while it is open, of the wait for approval afterwards."""
    keys: ShownKeys = NO_KEYS
    why: str = ""
    """It is useless."""
    replaced_code_hash: bytes = b""
    """Of the invitation before: its agent may still ask, and guesses nothing by that."""

    def at(self, now_us: int) -> Invitation:
        """The same, EXPIRED when its time is over."""
        if self.state in (OPEN, PENDING) and now_us >= self.expire_time_us:
            words = "nobody used its code in time" if self.state == OPEN else "nobody approved it in time"
            return replace(self, state=EXPIRED, why=words)
        return self

    def spent(self, why: str) -> Invitation:
        """The same, useless."""
        return replace(self, state=SPENT, why=why)


def new_code(random_bytes: Callable[[int], bytes]) -> str:
    """XXXX-XXXX-XXXX, 60 random bits."""
    letters = "".join(_LETTERS[byte % 32] for byte in random_bytes(_CODE_BYTES))
    return "-".join(letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP))


def code_hash(site: str, code: str) -> bytes:
    """What is kept of a code. Not slow on purpose: 60 random bits cannot be tried out within ten minutes.

    Raises:
        SendenseError: INVALID_REQUEST when it cannot be a code, which says nothing about any invitation.
    """
    letters = code.upper().translate(_MISREAD)
    if len(letters) != _CODE_BYTES or not set(letters) <= set(_LETTERS):
        raise invalid("code", "is not of the form XXXX-XXXX-XXXX", remedy="Copy the line of the invitation.")
    return hashlib.sha256(canonical("sendense invitation v1", site, letters)).digest()


def issue(site: str, hashed: bytes, *, rotates: bool, now_us: int) -> Invitation:
    """A new one."""
    return Invitation(site, hashed, OPEN, rotates, now_us, now_us + CODE_FOR_US)


def show(
    found: Invitation | None, site: str, hashed: bytes, keys: ShownKeys, now_us: int
) -> tuple[Invitation | None, SendenseError | None]:
    """What comes of a code that is shown with keys.

    Args:
        found: the site's invitation, if there is one.
        site: as it was named.
        hashed: the code's hash.
        keys: of the agent.
        now_us: the wall clock.

    Returns:
        The invitation as it is to be kept (None: as it was), and why the agent is refused (None: it is not).
    """
    if found is None:
        return None, refused(site)
    if hmac.compare_digest(found.replaced_code_hash, hashed):
        return None, refused(site, "there is a newer one")
    if not hmac.compare_digest(found.code_hash, hashed):
        guessed = found.spent("a wrong code was tried") if found.at(now_us).state == OPEN else None
        return guessed, refused(site)
    found = found.at(now_us)
    if found.state == OPEN:
        return replace(found, state=PENDING, keys=keys, expire_time_us=now_us + APPROVAL_FOR_US), None
    if found.state == PENDING and found.keys != keys:
        astray = found.spent("its code was used by two agents")
        return astray, refused(site, astray.why)
    if found.state in (PENDING, APPROVED) and found.keys == keys:
        return found, None
    return None, refused(site, found.why or "its code was used already")


def refused(site: str, why: str = "") -> SendenseError:
    """INVITATION_INVALID; why it is useless is told only to who has the code."""
    return SendenseError(
        Reason.REASON_INVITATION_INVALID,
        f"the invitation of site {site!r} cannot be used: {why}"
        if why
        else f"there is no invitation of site {site!r} with this code",
        remedy=f"Have a new one made at the centre: `sendense agent invite {site}`. A wrong code makes an "
        "invitation useless.",
        site=site,
    )


class WrongCodes:
    """How many wrong codes came lately; above the limit nobody is told or logged anything about them."""

    def __init__(self, most: int, within_us: int) -> None:
        self._most = most
        self._within_us = within_us
        self._moments_us: list[int] = []

    def too_many(self, now_us: int) -> bool:
        """Counts one more; whether that is one too many."""
        # A clock that was set back forgets nothing for longer than from now on.
        self._moments_us = [each for each in self._moments_us if 0 <= now_us - each < self._within_us]
        if len(self._moments_us) >= self._most:
            return True
        self._moments_us.append(now_us)
        return False
