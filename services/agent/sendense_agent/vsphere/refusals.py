# SPDX-License-Identifier: Apache-2.0
"""Why a vCenter is not reached or not trusted, each cause in its own words, with what was seen.

The cause is in the metadata too ("cause"). Of certificates: expired, not_yet_valid, wrong_host,
wrong_authority, changed, other. Of connections: name_unknown, refused, timeout, no_route, no_tls, broken.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cryptography import x509

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

if TYPE_CHECKING:
    from sendense_agent.vsphere.tls import VcenterTarget

# OpenSSL's numbers of what can be wrong with a certificate.
_CAUSES = {
    9: "not_yet_valid",
    10: "expired",
    62: "wrong_host",
    64: "wrong_host",
    18: "wrong_authority",
    19: "wrong_authority",
    20: "wrong_authority",
    21: "wrong_authority",
    7: "wrong_authority",
    30: "wrong_authority",
}
_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
_NO_TLS = {"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"}


@dataclass(frozen=True)
class Seen:
    """A certificate that a server has shown, for people."""

    sha256: str
    """As "AB:CD:…"."""
    valid: str
    """From and to."""
    names: str
    """That it is for."""
    issuer: str
    """Who signed it, by its own word."""

    @classmethod
    def of(cls, certificate: bytes) -> Seen:
        """A certificate in DER."""
        sha256 = hashlib.sha256(certificate).digest().hex(":").upper()
        try:
            read = x509.load_der_x509_certificate(certificate)
            begin, end = read.not_valid_before_utc, read.not_valid_after_utc
            valid = f"from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
            return cls(sha256, valid, ", ".join(_names(read)) or "no name", read.issuer.rfc4514_string())
        except ValueError:
            return cls(sha256, "unknown", "unknown", "unknown")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value.get_values_for_type(x509.DNSName)
    return [*names, *map(str, extension.value.get_values_for_type(x509.IPAddress))]


def untrusted(
    target: VcenterTarget, error: ssl.SSLCertVerificationError, certificate: bytes | None
) -> SendenseError:
    """VCENTER_CERTIFICATE_NOT_TRUSTED, by what OpenSSL says.

    Args:
        target: the vCenter.
        error: OpenSSL's.
        certificate: what the server shows (DER); None: nobody has looked.
    """
    cause = _CAUSES.get(error.verify_code, "other")
    seen = Seen.of(certificate) if certificate else None
    why = {
        "expired": "it has expired",
        "not_yet_valid": "it is not valid yet, by this site's clock",
        "wrong_host": f"it is not for {target.host}",
        "wrong_authority": "none of the given authorities has signed it",
    }.get(cause, str(error.verify_message))
    remedy = {
        "expired": "Renew it at the vCenter. If its authority is another one then: "
        f"`sendense vcenter change {target.name} --ca-file FILE`.",
        "not_yet_valid": "Check the clocks of the site (NTP) and of the vCenter.",
        "wrong_host": "Run this with a name that the certificate is for: "
        f"`sendense vcenter change {target.name} --address HOST`.",
        "wrong_authority": "Compare it with the vCenter's own. If it is right, give the authority "
        f"that signed it: `sendense vcenter change {target.name} --ca-file FILE`.",
    }.get(
        cause,
        "Compare it with the vCenter's own. If it is right: "
        f"`sendense vcenter change {target.name} --thumbprint SHA256`.",
    )
    return _not_trusted(target, cause, f"{why} ({error.verify_message})", remedy, seen)


def changed(target: VcenterTarget, certificate: bytes) -> SendenseError:
    """VCENTER_CERTIFICATE_NOT_TRUSTED: it is another one than the pinned one."""
    seen = Seen.of(certificate)
    pinned = target.certificate_sha256.hex(":").upper() or "none"
    return _not_trusted(
        target,
        "changed",
        f"it is another one than the one that is pinned: its SHA-256 is {seen.sha256}, pinned is {pinned}",
        "Compare it with the vCenter's own console. If it was renewed: "
        f"`sendense vcenter change {target.name} --thumbprint SHA256`.",
        seen,
    )


def _not_trusted(
    target: VcenterTarget, cause: str, why: str, remedy: str, seen: Seen | None
) -> SendenseError:
    shown = ""
    facts: dict[str, Any] = {}
    if seen is not None:
        shown = (
            f". Seen: SHA-256 {seen.sha256}, valid {seen.valid}, for {seen.names}, signed by {seen.issuer}"
        )
        facts = {
            "seen_sha256": seen.sha256,
            "seen_valid": seen.valid,
            "seen_names": seen.names,
            "seen_issuer": seen.issuer,
        }
    return SendenseError(
        Reason.REASON_VCENTER_CERTIFICATE_NOT_TRUSTED,
        f"the certificate of vCenter {target.name} at {target.host}:{target.port} is not trusted: "
        f"{why}{shown}",
        remedy=remedy,
        vcenter=target.name,
        cause=cause,
        **facts,
    )


def unreachable(target: VcenterTarget, error: BaseException) -> SendenseError:
    """VCENTER_UNREACHABLE, with the network's own words."""
    cause, why, remedy = _connection_cause(target, error)
    own = str(error) or type(error).__name__
    return SendenseError(
        Reason.REASON_VCENTER_UNREACHABLE,
        f"vCenter {target.name} does not answer at {target.host}:{target.port}: {why} ({own})",
        remedy=remedy,
        vcenter=target.name,
        cause=cause,
    )


def _connection_cause(target: VcenterTarget, error: BaseException) -> tuple[str, str, str]:
    """(Cause, in words, what to do)."""
    check = "Check its address, and that the site's network lets the agent reach it."
    match error:
        case socket.gaierror() | UnicodeError():
            remedy = "Check the name, and the name servers of the agent's host. An IP address works, too."
            return "name_unknown", f"the site knows no host {target.host}", remedy
        case ConnectionRefusedError():
            remedy = f"Is the vCenter up, and {target.port} its port? A firewall may refuse in its name."
            return "refused", "nothing listens there", remedy
        case TimeoutError():
            return "timeout", "there is no answer in time", f"{check} A firewall may drop what is sent."
        case ssl.SSLError() if error.reason in _NO_TLS:
            remedy = f"Is {target.port} the port of the vCenter's HTTPS, and no proxy before it?"
            return "no_tls", "what answers there speaks no TLS", remedy
        case OSError() if error.errno in _NO_ROUTE:
            return "no_route", "no way leads there from the site", check
    return "broken", "the connection broke", check
