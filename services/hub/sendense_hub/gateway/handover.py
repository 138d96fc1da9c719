# SPDX-License-Identifier: Apache-2.0
"""How the supervisor hands accepted connections to a gateway: a private pair of sockets, one byte a message.

The supervisor sends connections (the descriptor travels beside the byte); the gateway says when it is ready
and when a connection has ended, so that the supervisor knows which gateway has the fewest.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

_CONNECTION = b"c"
_READY = b"r"
_ENDED = b"e"
_TELL_AGAIN_S = 0.05


def pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's and the gateway's end; message boundaries are kept."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


class SupervisorEnd:
    """Hands connections to one gateway."""

    def __init__(self, control: socket.socket) -> None:
        """Takes over `control`."""
        self._control = control
        self.connections = 0
        """How many the gateway has."""
        self.ready = False
        """Whether the gateway takes connections."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """Follows what the gateway says, until it is gone; `changed` is called at each change."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while message := await loop.sock_recv(self._control, 1):
                if message == _READY:
                    self.ready = True
                elif message == _ENDED:
                    self.connections -= 1
                changed()
        self.ready = False
        changed()

    def hand_over(self, sock: socket.socket) -> bool:
        """Gives the connection to the gateway; False if it cannot take it now."""
        try:
            socket.send_fds(self._control, [_CONNECTION], [sock.fileno()])
        except (BlockingIOError, ConnectionError):
            return False
        self.connections += 1
        return True

    def close(self) -> None:
        """Lets go; the gateway ends."""
        self._control.close()


class GatewayEnd:
    """Takes connections from the supervisor."""

    def __init__(self, descriptor: int) -> None:
        """Takes over the inherited descriptor."""
        self._control = socket.socket(fileno=descriptor)
        self._control.setblocking(False)
        self._untold = 0

    async def connections(self) -> AsyncIterator[socket.socket]:
        """Accepted TCP connections, not blocking, until the supervisor is gone."""
        self._control.send(_READY)
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
            except BlockingIOError:
                await readable(self._control)
                continue
            except ConnectionError:
                return
            if not message:
                return
            if not descriptors:  # this process has none left
                self.ended()
            for descriptor in descriptors:
                sock = socket.socket(fileno=descriptor)
                sock.setblocking(False)
                yield sock

    def ended(self) -> None:
        """Tells the supervisor that one connection has ended."""
        self._untold += 1
        if self._untold == 1:
            self._tell()

    def _tell(self) -> None:
        """Says all that is to be said; a busy supervisor is told later, or it would count wrong for ever."""
        while self._untold:
            try:
                self._control.send(_ENDED)
            except BlockingIOError:
                asyncio.get_running_loop().call_later(_TELL_AGAIN_S, self._tell)
                return
            except OSError:  # a supervisor that is gone needs no count
                return
            self._untold -= 1

    def close(self) -> None:
        """Lets go of the supervisor."""
        self._control.close()


async def readable(sock: socket.socket) -> None:
    """Returns when there is something to receive or to accept."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
