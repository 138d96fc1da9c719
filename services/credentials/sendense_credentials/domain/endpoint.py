# SPDX-License-Identifier: Apache-2.0
"""The vCenter that a credential is for: a password goes nowhere else, whatever the hub says."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from sendense_common.errors import invalid

_HOST_CHARACTERS = 255
_CA_PEM_CHARACTERS = 64 * 1024
_SHA256_BYTES = 32


@dataclass(frozen=True)
class Endpoint:
    """An address, and how the server there is recognized: one of the last two is set."""

    host: str
    """1 to 255 printable characters without blanks."""
    port: int
    """1 to 65535."""
    ca_pem: str = ""
    """Certificates of the authorities to trust, PEM."""
    certificate_sha256: bytes = b""
    """SHA-256 of the server's own certificate."""

    def __post_init__(self) -> None:
        """Refuses what could not be recognized for certain.

        Raises:
            SendenseError: INVALID_REQUEST.
        """
        if not 1 <= len(self.host) <= _HOST_CHARACTERS or not self.host.isprintable() or " " in self.host:
            raise invalid("endpoint.host", f"must have 1 to {_HOST_CHARACTERS} characters and no blank")
        if not 1 <= self.port <= 65535:
            raise invalid("endpoint.port", "must be 1 to 65535")
        if self.ca_pem:
            _check_ca(self.ca_pem)
        elif len(self.certificate_sha256) != _SHA256_BYTES:
            raise invalid(
                "endpoint.trust",
                "a CA, or the certificate's SHA-256 with 32 bytes, is required",
                remedy="There is no way to trust a vCenter unseen.",
            )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def changed(
    before: Endpoint | None,
    *,
    host: str = "",
    port: int = 0,
    ca_pem: str = "",
    certificate_sha256: bytes = b"",
) -> Endpoint:
    """An endpoint in the place of `before`: the address stays when none is given, the trust likewise.

    Raises:
        SendenseError: INVALID_REQUEST when nothing is given, or a part without which there was none before.
    """
    moves, trusts = bool(host or port), bool(ca_pem or certificate_sha256)
    if not moves and not trusts:
        raise invalid("endpoint", "says nothing that is to change: give an address, a trust, or both")
    if before is None and not (moves and trusts):
        raise invalid("endpoint", "is required whole: the credential is bound to no vCenter yet")
    if before is not None and not moves:
        host, port = before.host, before.port
    if before is not None and not trusts:
        ca_pem, certificate_sha256 = before.ca_pem, before.certificate_sha256
    return Endpoint(host, port, ca_pem, certificate_sha256)


def _check_ca(ca_pem: str) -> None:
    if len(ca_pem) > _CA_PEM_CHARACTERS:
        raise invalid("endpoint.ca_pem", f"must have at most {_CA_PEM_CHARACTERS} characters")
    try:
        # With nothing at all, Python would trust all the world.
        if not ca_pem.strip():
            raise ValueError("it is empty")
        ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError, TypeError) as error:
        raise invalid("endpoint.ca_pem", f"holds no certificate in PEM format: {error}") from None
