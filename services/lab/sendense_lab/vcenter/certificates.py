# SPDX-License-Identifier: Apache-2.0
"""A certificate authority, made once for each lab, and server certificates of every kind that it can show."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NAMES = ("localhost", "vcenter.lab.example")
ADDRESSES = ("127.0.0.1",)
KINDS = ("expired", "not_yet_valid", "other_host", "other_ca", "renewed")
"""What else than a good one can be shown; "renewed": as good, of the same authority, with another key."""

_NAME = "Sendense lab CA"


def make_certificates(
    directory: Path,
    *,
    names: Sequence[str] = NAMES,
    addresses: Sequence[str] = ADDRESSES,
    valid_days: int = 365,
) -> tuple[Path, Path, Path]:
    """Makes (CA certificate, server certificate, server key), PEM files in `directory`.

    An authority that is there stays, and so does a server certificate that is as wanted: a restart changes
    nobody's trust.

    Args:
        directory: exists.
        names: DNS names of the server.
        addresses: its IP addresses.
        valid_days: negative for a certificate that has expired.
    """
    authority = directory / "ca.pem", directory / "ca.key"
    server = directory / "server.pem", directory / "server.key"
    if not all(path.exists() for path in authority):
        _make_authority(*authority)
    if not all(path.exists() for path in server) or not _is_as_wanted(
        server[0], authority[0], names, addresses, valid_days
    ):
        _sign(*authority, *server, names=names, addresses=addresses, valid_days=valid_days)
    return authority[0], *server


def make_kind(directory: Path, kind: str) -> tuple[Path, Path]:
    """(Certificate, key) of one of KINDS, made anew beside those of `make_certificates`.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a certificate is good, {', '.join(KINDS)}, not {kind!r}")
    authority = directory / "ca.pem", directory / "ca.key"
    if kind == "other_ca":
        authority = directory / "other-ca.pem", directory / "other-ca.key"
        _make_authority(*authority)
    made = directory / f"server-{kind}.pem", directory / f"server-{kind}.key"
    elsewhere = kind == "other_host"
    _sign(
        *authority,
        *made,
        names=("elsewhere.lab.example",) if elsewhere else NAMES,
        addresses=() if elsewhere else ADDRESSES,
        valid_days=-1 if kind == "expired" else 365,
        from_days=1 if kind == "not_yet_valid" else -20,
    )
    return made


def _is_as_wanted(
    server: Path, authority: Path, names: Sequence[str], addresses: Sequence[str], valid_days: int
) -> bool:
    """Whether a certificate is for these names, of this authority, and (not) expired."""
    read = x509.load_pem_x509_certificate(server.read_bytes())
    found = read.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    now = datetime.datetime.now(datetime.UTC)
    try:
        read.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.read_bytes()))
    except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one is made
        return False
    return (
        list(found.get_values_for_type(x509.DNSName)) == list(names)
        and [str(each) for each in found.get_values_for_type(x509.IPAddress)] == list(addresses)
        and (read.not_valid_after_utc > now) == (valid_days > 0)
    )


def _make_authority(certificate: Path, key_file: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(certificate, key_file, made, key)


def _sign(
    authority: Path,
    authority_key: Path,
    certificate: Path,
    key_file: Path,
    *,
    names: Sequence[str],
    addresses: Sequence[str],
    valid_days: int,
    from_days: int = -20,
) -> None:
    """A server certificate of an authority."""
    now = datetime.datetime.now(datetime.UTC)
    ca = x509.load_pem_x509_certificate(authority.read_bytes())
    ca_key = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses]
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vcenter.lab.example")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=from_days))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write(certificate, key_file, made, key)


def _write(
    certificate: Path, key_file: Path, made: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
