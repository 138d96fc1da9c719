# SPDX-License-Identifier: Apache-2.0
"""TLS of the operators' port: version 1.3 alone, certificates that are read again when their files change.

gRPC's library for Python has no setting for the lowest version. What it has is the list of cipher suites of
TLS 1.2 and before (those of 1.3 are not affected by it). With a list that holds nothing but suites with
pre-shared keys, which this server does not have, no older version finds a suite in common. `only_tls_1_3`
sets that list, and `refuses_older_versions` looks whether it is so.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
from cryptography import x509

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError

log = logging.getLogger(__name__)

_SUITES_OF_1_2 = "ECDHE-PSK-CHACHA20-POLY1305"
_ANSWER_WITHIN_S = 5.0
_REMEDY = "docs/operations.md says how to make certificates."


@dataclass(frozen=True)
class TlsFiles:
    """What a server shows and whom it believes. All PEM."""

    certificate: Path
    """Its certificate, and those between it and the CA."""
    key: Path
    """Its private key, not encrypted."""
    client_ca: Path | None = None
    """Clients must have a certificate of one of these CAs. None: clients show none."""


def only_tls_1_3() -> None:
    """Of processes that this one starts from now on, on both sides: gRPC looks at it when it is imported."""
    os.environ["GRPC_SSL_CIPHER_SUITES"] = _SUITES_OF_1_2
    # A line for each handshake that fails would let anybody fill the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def refuses_older_versions(host: str, port: int) -> bool:
    """Whether a server does not talk TLS 1.2. Blocks."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # asked is only whether it talks
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        with (
            socket.create_connection((host, port), timeout=_ANSWER_WITHIN_S) as plain,
            context.wrap_socket(plain),
        ):
            return False
    except ssl.SSLError:
        return True


def check_files(files: TlsFiles) -> None:
    """Raises LISTENER_REFUSED when a server could not use them. Blocks."""
    _read(files)


def valid_until(files: TlsFiles) -> datetime:
    """When the certificate expires; LISTENER_REFUSED when it cannot be read. Blocks."""
    with _named(files.certificate):
        return x509.load_pem_x509_certificate(files.certificate.read_bytes()).not_valid_after_utc


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Of the files as they are at each handshake; files that cannot be used leave the ones before in use.

    Raises:
        SendenseError: LISTENER_REFUSED when they cannot be used now.
    """
    seen = _stamps(files)
    configuration = _read(files)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        now = _stamps(files)
        if now == seen:
            return None
        seen = now
        try:
            fresh = _read(files)
        except SendenseError as error:
            log.error("the certificate that was in use stays: %s. %s", error, error.remedy)
            return None
        log.info("the certificate %s was read again", files.certificate)
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        configuration,
        renewed,  # type: ignore[arg-type]  # the stubs forget that None means unchanged
        require_client_authentication=files.client_ca is not None,
    )


def _stamps(files: TlsFiles) -> list[tuple[int, int] | None]:
    """Of each file something that changes with it."""

    def stamp(path: Path | None) -> tuple[int, int] | None:
        try:
            found = path.stat() if path else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_ino) if found else None

    return [stamp(path) for path in (files.certificate, files.key, files.client_ca)]


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    with _named(files.key):
        mode = stat.S_IMODE(files.key.stat().st_mode)
    if mode & stat.S_IRWXO:
        raise _unusable(files.key, f"everybody may read it (mode {mode:04o})", f"chmod 600 {files.key}")
    with _named(files.certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A password would be asked for on a terminal that a service does not have.
        context.load_cert_chain(files.certificate, files.key, password=lambda: "")
    if valid_until(files) < datetime.now(UTC):
        raise _unusable(files.certificate, f"it expired on {valid_until(files):%Y-%m-%d %H:%M UTC}")
    ca = None
    if files.client_ca:
        with _named(files.client_ca):
            context.load_verify_locations(files.client_ca)
            ca = files.client_ca.read_bytes()
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


class _named:  # noqa: N801 - reads as a word
    """Turns what goes wrong with a file into LISTENER_REFUSED with its name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ssl.SSLError):
            raise _unusable(
                self._path, f"it is not PEM, or does not belong to its key: {error.reason}"
            ) from error
        if isinstance(error, OSError):
            raise _unusable(self._path, error.strerror or str(error)) from error
        if isinstance(error, ValueError):
            raise _unusable(self._path, f"it is not PEM: {error}") from error


def _unusable(path: Path, why: str, remedy: str = _REMEDY) -> SendenseError:
    return SendenseError(
        Reason.REASON_LISTENER_REFUSED,
        f"the API cannot be served with {path}: {why}",
        remedy=remedy,
        file=path,
    )
