# SPDX-License-Identifier: Apache-2.0
"""A hub elsewhere: where it is, what this caller shows it, and what is said when it does not work."""

from __future__ import annotations

import contextlib
import ipaddress
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from sendense.common.v1.reason_pb2 import Reason
from sendense_cli import unanswered
from sendense_common import rpc
from sendense_common.errors import SendenseError, invalid

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Hub:
    """As the command line names it."""

    address: str
    """`HOST:PORT`."""
    token_file: Path | None = None
    ca_file: Path | None = None
    """Who may have signed the hub's certificate."""
    certificate_file: Path | None = None
    """Of this caller."""
    key_file: Path | None = None
    """Of that certificate."""

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """To its API; a call that does not get there says why in words."""
        async with rpc.connect_remote(self._remote()) as channel:
            try:
                yield channel
            except grpc.aio.AioRpcError as error:
                raise self._told(error) from error

    def _remote(self) -> rpc.Remote:
        host, _, port = self.address.rpartition(":")
        if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
            raise invalid("--hub", f"{self.address!r} is not HOST:PORT")
        if (self.certificate_file is None) != (self.key_file is None):
            raise invalid("--certificate-file", "and --key-file need each other")
        if self.token_file is None and self.certificate_file is None:
            raise invalid(
                "--hub",
                "needs --token-file, or --certificate-file and --key-file",
                remedy="An admin makes one.",
            )
        host = host.strip("[]")
        return rpc.Remote(
            host=host,
            port=int(port),
            # What is in the clear never leaves this host.
            tls=not is_loopback(host) or self.ca_file is not None or self.certificate_file is not None,
            ca_pem=_content("--ca-file", self.ca_file),
            token=_token(self.token_file) if self.token_file else "",
            certificate_pem=_content("--certificate-file", self.certificate_file),
            key_pem=_content("--key-file", self.key_file),
        )

    def _told(self, error: grpc.aio.AioRpcError) -> SendenseError:
        told = SendenseError.from_rpc(error, doing=f"asking the hub at {self.address}")
        if "grpc_code" in told.metadata and unanswered.broken_in_words(error):
            return SendenseError(
                Reason.REASON_SERVICE_UNAVAILABLE,
                f"the hub at {self.address} broke off the call",
                remedy=f"{unanswered.TRY_AGAIN} Else look at its log there.",
                detail=error.details(),
            )
        if told.reason != Reason.REASON_SERVICE_UNAVAILABLE or "grpc_code" not in told.metadata:
            return told
        details = error.details() or ""
        if "CERTIFICATE_VERIFY_FAILED" in details or "Hostname Verification Check failed" in details:
            why = "its certificate is not trusted, or is not for this name"
            remedy = "Give the CA that signed it with --ca-file, and --hub as the certificate names it."
        elif "refused" in details:
            why, remedy = "nobody answers there", "Is the hub running with --api-listen, at this address?"
        elif "WRONG_VERSION_NUMBER" in details:
            why, remedy = (
                "it does not talk TLS",
                "Leave --ca-file out, on the hub's own host; or mend the hub.",
            )
        else:
            why = details.split("errors resolving")[0][:300] or "no answer"
            remedy = "Check the address and the network; a hub with TLS needs --ca-file, one with "
            remedy += "--api-client-ca a certificate."
        return SendenseError(
            Reason.REASON_SERVICE_UNAVAILABLE,
            f"the hub at {self.address} cannot be asked: {why}",
            remedy=remedy,
        )


def is_loopback(host: str) -> bool:
    """Whether only this host reaches what listens there; `host` without brackets."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _content(option: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
    except OSError as error:
        raise invalid(option, f"{path}: {error.strerror}") from error
    if b"-----BEGIN " not in data:
        raise invalid(option, f"{path} is not PEM")
    return data


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = file.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise invalid("--token-file", f"{path}: {error.strerror}") from error
    if stat.S_ISREG(path.stat().st_mode) and mode & stat.S_IRWXO:
        raise invalid(
            "--token-file", f"everybody may read {path} (mode {mode:04o})", remedy=f"chmod 600 {path}"
        )
    if not text or not text.isprintable() or " " in text or "\ufffd" in text:
        raise invalid("--token-file", f"{path} holds no token", remedy="It is one line: the token.")
    return text
