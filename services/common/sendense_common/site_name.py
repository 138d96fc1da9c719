# SPDX-License-Identifier: Apache-2.0
"""Which site is at the other end of a unix socket: the gateway names its own end after who has logged in.

The name is an abstract one (Linux): the kernel tells it to whoever accepts the connection, and nothing is
left in a directory. It is worth as much as the socket's rights: only who may open the socket can give one. An
agent has no way to choose it.
"""

from __future__ import annotations

import re
import secrets
import socket

# OpenTelemetry's interceptor takes it for an address and a port, and fails where there is no colon.
_PREFIX = "sendense/site/"
_NAME = re.compile(_PREFIX + r"(?P<site>[a-z0-9][a-z0-9-]{0,62}):[0-9a-f]+")
_PEER = "unix-abstract:"


def bound(site: str) -> socket.socket:
    """A socket that does not block and is connected to nothing yet, in the name of a site."""
    made = socket.socket(socket.AF_UNIX)
    try:
        made.setblocking(False)
        made.bind(f"\0{_PREFIX}{site}:{secrets.token_hex(8)}")
    except BaseException:
        made.close()
        raise
    return made


def of_address(address: str | bytes | None) -> str:
    """The site of a peer's address, as `getpeername` gives it; empty: a process of the installation."""
    text = address.decode(errors="replace") if isinstance(address, bytes) else address or ""
    return _site(text[1:]) if text.startswith("\0") else ""


def of_peer(peer: str) -> str:
    """The site of a call's peer, as gRPC gives it; empty: a process of the installation."""
    return _site(peer.removeprefix(_PEER)) if peer.startswith(_PEER) else ""


def _site(name: str) -> str:
    found = _NAME.fullmatch(name)
    return found["site"] if found else ""
