# SPDX-License-Identifier: Apache-2.0
"""Whom to talk to: the certificate is verified on every connection, before a password is sent on it."""

from __future__ import annotations

import hashlib
import socket
import ssl
import urllib.error
from dataclasses import dataclass
from typing import Any

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError, invalid

_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class VcenterTarget:
    """A vCenter and how it is recognized: one of the last two is set."""

    name: str
    host: str
    port: int
    ca_pem: str = ""
    certificate_sha256: bytes = b""

    @classmethod
    def of(cls, access: VcenterAccess) -> VcenterTarget:
        """From a request; INVALID_REQUEST without a host, a port or a way to verify."""
        if not access.host or not 1 <= access.port <= 65535:
            raise invalid("vcenter", "host and port are required")
        if access.WhichOneof("trust") is None:
            raise invalid("vcenter.trust", "is required")
        return cls(access.name, access.host, access.port, access.ca_pem, access.certificate_sha256)


@dataclass(frozen=True)
class Trusted:
    """The result of a first handshake."""

    context: ssl.SSLContext
    """For all further connections; trusts nobody else."""
    trust_pem: str
    """Certificates that verify this server, for other programs."""
    certificate: bytes
    """The server's own, DER."""
    server_name: str
    """A name that it is for: programs that check names must call the server by it."""

    @property
    def certificate_sha256(self) -> bytes:
        """Of the server's certificate."""
        return hashlib.sha256(self.certificate).digest()

    @property
    def sha1_thumbprint(self) -> str:
        """Of the server's certificate, as "AA:BB:…", for programs that know nothing better."""
        return hashlib.sha1(self.certificate, usedforsecurity=False).digest().hex(":").upper()


def recognize(target: VcenterTarget) -> Trusted:
    """Connects once and checks the certificate. Blocks for seconds.

    Raises:
        SendenseError: VCENTER_UNREACHABLE, INVALID_REQUEST for a CA that is none, or
            VCENTER_CERTIFICATE_NOT_TRUSTED with the cause.
    """
    if not target.ca_pem:
        return _recognize_pinned(target)
    try:
        context = ssl.create_default_context(cadata=target.ca_pem)
    except (ssl.SSLError, TypeError, ValueError) as error:
        raise invalid(
            "vcenter.trust.ca_pem",
            f"holds no certificate of an authority: {error}",
            remedy=f"Add vCenter {target.name} again with --ca-file, a PEM file.",
        ) from error
    shown, _ = _handshake(target, context)
    return Trusted(context, target.ca_pem, shown, target.host)


def _recognize_pinned(target: VcenterTarget) -> Trusted:
    looking = ssl.create_default_context()
    looking.check_hostname = False
    looking.verify_mode = ssl.CERT_NONE  # only to see the certificate; nothing is sent on this connection
    shown, _ = _handshake(target, looking)
    digest = hashlib.sha256(shown).digest()
    if digest != target.certificate_sha256:
        raise _not_trusted(
            target,
            f"it shows {digest.hex(':').upper()}, pinned is {target.certificate_sha256.hex(':').upper()}",
        )
    pem = ssl.DER_cert_to_PEM_cert(shown)
    context = ssl.create_default_context(cadata=pem)
    context.check_hostname = False  # this very certificate is trusted, whatever names are in it
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _, facts = _handshake(target, context)
    return Trusted(context, pem, shown, _name_in(target, pem, facts))


def _name_in(target: VcenterTarget, pem: str, facts: dict[str, Any]) -> str:
    """The host if the certificate is for it, else a name that it is for."""
    strict = ssl.create_default_context(cadata=pem)
    strict.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        _handshake(target, strict)
    except SendenseError as error:
        if error.reason != Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED:
            raise
    else:
        return target.host
    others = facts.get("subjectAltName", ())
    names = [
        *(name.replace("*", "vcenter", 1) for kind, name in others if kind == "DNS"),
        *(name for kind, name in others if kind == "IP Address"),
        *(value for part in facts.get("subject", ()) for kind, value in part if kind == "commonName"),
    ]
    return names[0] if names else target.host


def _handshake(target: VcenterTarget, context: ssl.SSLContext) -> tuple[bytes, dict[str, Any]]:
    """The server's certificate (DER), and what is in it if it was verified."""
    try:
        with (
            socket.create_connection((target.host, target.port), timeout=_CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=target.host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
            assert shown is not None
            return shown, dict(secure.getpeercert() or {})
    except (OSError, UnicodeError) as error:
        raise connection_failed(target, error) from error


def connection_failed(target: VcenterTarget, error: BaseException) -> SendenseError:
    """VCENTER_CERTIFICATE_NOT_TRUSTED, or VCENTER_UNREACHABLE with the network's own words."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_trusted(target, error.verify_message)
    return SendenseError(
        Reason.REASON_VCENTER_UNREACHABLE,
        f"vCenter {target.name} does not answer at {target.host}:{target.port}: "
        f"{str(error) or type(error).__name__}",
        remedy="Check its address, and that the site's network lets the agent reach it.",
        vcenter=target.name,
    )


def _not_trusted(target: VcenterTarget, why: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED,
        f"the certificate of vCenter {target.name} at {target.host}:{target.port} is not trusted: {why}",
        remedy="Compare it with the vCenter's own, then add the vCenter again with the right --ca-file or "
        "--thumbprint, by a name that the certificate is for.",
        vcenter=target.name,
    )
