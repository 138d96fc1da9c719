# SPDX-License-Identifier: Apache-2.0
"""What requests must look like. Everything refused here is INVALID_REQUEST and names the field."""

from __future__ import annotations

import base64
import binascii
import re
import uuid

from sendense_common.errors import SendenseError, invalid

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_SITE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TEXT_CHARS = 256
_PAGE_DEFAULT, _PAGE_MOST = 100, 1000
_MOMENT_MOST_US = 2**63 - 1


def text(field: str, value: str, *, required: bool = True) -> str:
    """A short text without control characters."""
    if required and not value:
        raise invalid(field, "is required")
    if len(value) > _TEXT_CHARS or not value.isprintable():
        raise invalid(field, f"must be at most {_TEXT_CHARS} printable characters")
    return value


def name(field: str, value: str) -> str:
    """A name that an operator chooses."""
    if not _NAME.fullmatch(value):
        raise invalid(field, f"{value[:80]!r} must be 1 to 63 lower-case letters, digits, dots and dashes")
    return value


def site(field: str, value: str) -> str:
    """The name of a site."""
    if not _SITE.fullmatch(value):
        raise invalid(field, f"{value[:80]!r} must be 1 to 63 lower-case letters, digits and dashes")
    return value


def request_id(value: str) -> str:
    """A UUID that the client made."""
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise invalid("request_id", "must be a UUID, new for each request") from None


def page_size(value: int) -> int:
    """How many at most; 0 is the default."""
    if not 0 <= value <= _PAGE_MOST:
        raise invalid("page_size", f"must be 0 to {_PAGE_MOST}")
    return value or _PAGE_DEFAULT


def page_token(token: str) -> tuple[int, str] | None:
    """Where the page before ended: (moment in microseconds, ID)."""
    if not token:
        return None
    try:
        moment, _, last = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        moment_us = int(moment)
    except (ValueError, binascii.Error):
        raise _foreign_token() from None
    if not 0 <= moment_us <= _MOMENT_MOST_US:
        raise _foreign_token()
    return moment_us, last


def _foreign_token() -> SendenseError:
    return invalid("page_token", "is not one that this hub gave")


def make_page_token(moment_us: int, last: str) -> str:
    """For the next page."""
    return base64.urlsafe_b64encode(f"{moment_us} {last}".encode()).decode()
