# SPDX-License-Identifier: Apache-2.0
"""The options that say where operators connect; `sendense-hub` passes them on to its API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sendense_common.rpc import Listener, TlsFiles

_FILES = {
    "--api-tls-certificate": "certificate of the API, PEM, with those between it and its CA",
    "--api-tls-key": "its private key, PEM",
    "--api-client-ca": "clients must show a certificate of a CA in this file, PEM",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """To a command line; defaults are in the environment."""
    parser.add_argument(
        "--api-listen",
        type=host_and_port,
        metavar="HOST:PORT",
        default=os.environ.get("SENDENSE_API_LISTEN") or None,
        help="serve the API here too, to callers with a token or a certificate; beyond this host with "
        "TLS 1.3 only (default: on RUN/api.sock alone)",
    )
    for name, text in _FILES.items():
        default = os.environ.get("SENDENSE_" + name.strip("-").upper().replace("-", "_"))
        parser.add_argument(
            name, type=Path, metavar="FILE", default=Path(default) if default else None, help=text
        )


def listener_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Listener | None:
    """What they say. Ends the process when they do not go together."""
    certificate, key = options.api_tls_certificate, options.api_tls_key
    wrong = ""
    if (certificate is None) != (key is None):
        wrong = "--api-tls-certificate and --api-tls-key need each other"
    elif options.api_client_ca and not certificate:
        wrong = "--api-client-ca needs --api-tls-certificate and --api-tls-key"
    elif certificate and not options.api_listen:
        wrong = "--api-tls-certificate needs --api-listen"
    if wrong:
        parser.error(wrong)
    if not options.api_listen:
        return None
    host, port = options.api_listen
    return Listener(host, port, TlsFiles(certificate, key, options.api_client_ca) if certificate else None)


def given_options(options: argparse.Namespace) -> list[str]:
    """The same for another command line."""
    made = []
    if options.api_listen:
        host, port = options.api_listen
        made += ["--api-listen", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    for name in _FILES:
        file = getattr(options, name.strip("-").replace("-", "_"))
        made += [name, str(file)] if file else []
    return made


def host_and_port(text: str) -> tuple[str, int]:
    """`0.0.0.0:8022` or `[::]:8022`."""
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
