# SPDX-License-Identifier: Apache-2.0
"""Where the hub of `sendense up` listens: the same at each start, for agents of other sites know it."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.private_file import replace_private_file

_FIRST = "127.0.0.1:0"
_OURS = range(20000, 32768)
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def choose(given: str, file: Path, ports: Iterable[int]) -> str:
    """The address to listen on: what is given, else that of the last start, else a free port of this host.

    Args:
        given: `HOST:PORT` of the command line; empty: none. Port 0 takes one of `ports`.
        file: where `keep` has put that of the last start.
        ports: candidates, the best first; when none is free, the answer has port 0 and the kernel chooses.

    Raises:
        SendenseError: LISTENER_REFUSED when the port is taken or the address is not ours, retryable when it
            is the port of the last start: its hub may still be ending; INVALID_REQUEST when the file holds no
            address.
    """
    kept = "" if given else _kept(file)
    host, _, port = (given or kept or _FIRST).rpartition(":")
    if int(port) == 0:
        return f"{host}:{next((each for each in ports if not _trouble(host, each)), 0)}"
    if trouble := _trouble(host, int(port)):
        remedy = "Stop what listens there, or choose another address: `sendense up --listen HOST:PORT`."
        if kept:
            remedy = (
                "Stop what listens there, or wait until it has ended if it is an earlier hub of this "
                "installation. Or choose another address: `sendense up --listen HOST:PORT`; agents of other "
                "sites dial this one, so give each of them the new one by the line of "
                "`sendense agent rotate-key SITE --hub HOST:PORT`."
            )
        whose = ", which this installation has had since it was first started" if kept else ""
        raise SendenseError(
            Reason.REASON_LISTENER_REFUSED,
            f"the hub cannot listen on {host} port {port}{whose}: {trouble.strerror or trouble}",
            remedy=remedy,
            retryable=bool(kept) and trouble.errno == errno.EADDRINUSE,
        )
    return f"{host}:{port}"


def keep(file: Path, chosen: str, endpoint: str) -> None:
    """Notes for later starts where the hub listens: the host as it was chosen, the port as it was got.

    It is on disk when this returns. Blocks.
    """
    address = f"{chosen.rpartition(':')[0]}:{endpoint.rpartition(':')[2]}\n"
    if not file.exists() or file.read_text() != address:
        replace_private_file(file, address.encode())


def candidates(
    outgoing: range | None = None, *, shuffle: Callable[[Sequence[int]], Sequence[int]] | None = None
) -> Iterable[int]:
    """Ports to choose from, in random order: installations that start at once seldom meet.

    None of them is in `outgoing`, where the kernel takes ports for outgoing connections (default: as this
    host is set): one that is in use while we are down could not be had back.
    """
    excluded = _outgoing() if outgoing is None else outgoing
    ports = [port for port in _OURS if port not in excluded]
    return shuffle(ports) if shuffle else random.sample(ports, len(ports))


def _kept(file: Path) -> str:
    if not file.exists():
        return ""
    address = file.read_text().strip()
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise SendenseError(
            Reason.REASON_INVALID_REQUEST,
            f"{file} should say where the hub listens, and holds no HOST:PORT",
            remedy="Say it anew: `sendense up --listen HOST:PORT`.",
        )
    return address


def _trouble(host: str, port: int) -> OSError | None:
    """Why nobody could listen there now."""
    host = host.strip("[]")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        return error
    return None


def _outgoing() -> range:
    try:
        first, last = map(int, _OUTGOING.read_text().split())
    except (OSError, ValueError):
        return range(0)
    return range(first, last + 1)
