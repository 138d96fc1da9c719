# SPDX-License-Identifier: Apache-2.0
"""What people give of a vCenter: its address, how it is recognized, its password."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from sendense.credentials.v1 import credential_service_pb2 as credentials_pb
from sendense.hub.v1 import vcenter_service_pb2 as pb
from sendense_common.errors import invalid

_HTTPS = 443
_SHA256_BYTES = 32
_LONGEST_PASSWORD_BYTES = 4096

Name = Annotated[str, typer.Argument(help="The vCenter's name here.")]
Username = Annotated[str, typer.Option(metavar="U", help="User, as administrator@vsphere.local.")]
CaFile = Annotated[
    Path | None, typer.Option(metavar="F", help="PEM file of the authority that signed its certificate.")
]
Thumbprint = Annotated[str, typer.Option(metavar="SHA256", help="SHA-256 of its certificate, as AB:CD:….")]
PasswordStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Read the password from standard input; one final newline is dropped."
    ),
]
PasswordFile = Annotated[
    Path | None,
    typer.Option(metavar="F", help="Read the password from a file; one final newline is dropped."),
]


def endpoint(address: str, ca_file: Path | None, thumbprint: str) -> credentials_pb.Endpoint:
    """Where it is, and how it is recognized.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    made = credentials_pb.Endpoint()
    made.host, made.port = _address(address)
    _take_trust(made, ca_file, thumbprint)
    return made


def changed_endpoint(address: str, ca_file: Path | None, thumbprint: str) -> credentials_pb.Endpoint:
    """What is to change of where it is and how it is recognized; what is not given is not set.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    made = credentials_pb.Endpoint()
    if address:
        made.host, made.port = _address(address)
    if ca_file is not None or thumbprint:
        _take_trust(made, ca_file, thumbprint)
    elif not address:
        raise invalid("--address, --ca-file or --thumbprint", "nothing is given that is to change")
    return made


def _take_trust(made: credentials_pb.Endpoint, ca_file: Path | None, thumbprint: str) -> None:
    if (ca_file is None) == (not thumbprint):
        raise invalid(
            "--ca-file or --thumbprint",
            "give exactly one of them",
            remedy="openssl s_client -connect HOST:443 </dev/null | openssl x509 -noout -fingerprint -sha256 "
            "shows what it presents; compare it with the vCenter's own console.",
        )
    if ca_file is None:
        made.certificate_sha256 = _digest(thumbprint)
        return
    try:
        made.ca_pem = ca_file.read_text()
    except (OSError, UnicodeError) as error:
        raise invalid("--ca-file", f"{ca_file}: {error}") from error
    if not made.ca_pem.strip():
        raise invalid("--ca-file", f"{ca_file} is empty")


def for_hub(vcenter: pb.Vcenter, where: credentials_pb.Endpoint) -> pb.Vcenter:
    """The same in the hub's words; a trust that is not set stays so."""
    vcenter.host, vcenter.port = where.host, where.port
    if where.ca_pem:
        vcenter.ca_pem = where.ca_pem
    elif where.certificate_sha256:
        vcenter.certificate_sha256 = where.certificate_sha256
    return vcenter


def password(from_stdin: bool, file: Path | None) -> str:
    """Reads it.

    Raises:
        SendenseError: INVALID_REQUEST.
    """
    if from_stdin == (file is not None):
        raise invalid(
            "--password-stdin or --password-file",
            "give exactly one of them",
            remedy="A password is never given on the command line: everybody can read that.",
        )
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as source:
            data = source.read(_LONGEST_PASSWORD_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeError) as error:
        raise invalid("password", f"cannot be read: {error}") from error
    if len(data) > _LONGEST_PASSWORD_BYTES:
        raise invalid("password", f"has more than {_LONGEST_PASSWORD_BYTES} bytes")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        return text.strip("[]"), _HTTPS
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise invalid("--address", f"{text!r} is not HOST or HOST:PORT")
    return host.strip("[]"), int(port)


def _digest(thumbprint: str) -> bytes:
    try:
        digest = bytes.fromhex(thumbprint.rpartition("=")[2].replace(":", "").strip())
    except ValueError:
        digest = b""
    if len(digest) != _SHA256_BYTES:
        raise invalid("--thumbprint", "must be the SHA-256 of the certificate: 64 hex digits")
    return digest
