# SPDX-License-Identifier: Apache-2.0
"""Whom to talk to: the certificate is verified on every connection, before a password is sent on it."""

from __future__ import annotations

import hashlib
import socket
import ssl
import urllib.error
from dataclasses import dataclass

from sendense.agent.v1.vcenter_access_pb2 import VcenterAccess
from sendense_agent.vsphere.refusals import changed, unreachable, untrusted
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
    certificate: bytes
    """The server's own, DER."""

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
            remedy=f"Give a PEM file: `sendense vcenter change {target.name} --ca-file FILE`.",
        ) from error
    return Trusted(context, _handshake(target, context))


def _recognize_pinned(target: VcenterTarget) -> Trusted:
    shown = _look(target)
    if hashlib.sha256(shown).digest() != target.certificate_sha256:
        raise changed(target, shown)
    context = ssl.create_default_context(cadata=ssl.DER_cert_to_PEM_cert(shown))
    context.check_hostname = False  # this very certificate is trusted, whatever names are in it
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return Trusted(context, _handshake(target, context))


def _look(target: VcenterTarget) -> bytes:
    """The certificate that the server shows (DER), whatever it is; nothing is sent on this connection."""
    looking = ssl.create_default_context()
    looking.check_hostname = False
    looking.verify_mode = ssl.CERT_NONE
    return _handshake(target, looking)


def _handshake(target: VcenterTarget, context: ssl.SSLContext) -> bytes:
    """The server's certificate (DER)."""
    try:
        with (
            socket.create_connection((target.host, target.port), timeout=_CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=target.host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
            assert shown is not None
            return shown
    except ssl.SSLCertVerificationError as error:
        raise untrusted(target, error, _shown(target)) from error
    except (OSError, UnicodeError) as error:
        raise connection_failed(target, error) from error


def _shown(target: VcenterTarget) -> bytes | None:
    """For words about a certificate that was refused; None when it cannot be had any more."""
    try:
        return _look(target)
    except SendenseError:
        return None


def connection_failed(target: VcenterTarget, error: BaseException) -> SendenseError:
    """VCENTER_CERTIFICATE_NOT_TRUSTED, or VCENTER_UNREACHABLE with the network's own words."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return untrusted(target, error, None)
    return unreachable(target, error)
