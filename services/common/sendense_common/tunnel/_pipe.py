# SPDX-License-Identifier: Apache-2.0
"""A byte pipe between a unix socket and an SSH channel.

Promises: no byte is lost or reordered, also those that arrive before the far end exists (NBD servers speak
first); end of file travels in each direction by itself; at most two windows per direction are in memory.

The socket end always exists first and is held (not read) until the channel end joins it. Nothing of
asyncssh's own forwarding is used: it loses early bytes on some event loops, grants a paused channel its whole
window again while data is still queued, and ignores a full SSH transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections import Counter
from pathlib import Path
from typing import Protocol, cast

import asyncssh
from asyncssh.connection import SSHConnection

from sendense_common import site_name
from sendense_common.tunnel._wire import PACKET_BYTES, WINDOW_BYTES

# How long a closed pipe may go on flushing into a program that does not read.
_LINGER_S = 60.0
_LOOK_AGAIN_S = 0.01


class Hold(enum.Enum):
    """Why an end is not read at the moment."""

    ALONE = "the other end does not exist yet"
    PARTNER_FULL = "the other end takes no more"
    CONNECTION_FULL = "the SSH connection takes no more"
    KEY_EXCHANGE = "the SSH connection changes its keys"


class _Transport(Protocol):
    """What a socket transport and an SSH channel have in common."""

    def write(self, data: bytes) -> None: ...
    def write_eof(self) -> None: ...
    def is_closing(self) -> bool: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class _End:
    """One end of a pipe: what it reads goes to its partner, and it is read only while nothing holds it.

    `transport` is None before the end is connected and after it was lost; `ended`: it was read to its end.
    """

    def __init__(self) -> None:
        self.transport: _Transport | None = None
        self._partner: _End | None = None
        self._holds: set[Hold] = set()
        self._draining = False
        self.ended = False

    def hold(self, why: Hold) -> None:
        """Stops reading."""
        if self.transport and not self._holds and not self._draining:
            self.transport.pause_reading()
        self._holds.add(why)

    def release(self, why: Hold) -> None:
        """Reads again if this was the last reason not to.

        asyncssh grants the peer its whole window again while a paused channel still has data queued. A
        channel that is resumed is therefore emptied before it is paused again: two windows at the most.
        A socket that was read to its end would report that end again, so it stays as it is.
        """
        self._holds.discard(why)
        if self.transport is None or self._holds or self.ended or self._draining:
            return
        self._draining = True
        self.transport.resume_reading()
        self._draining = False
        if self.transport is not None and self._holds:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """Called by our transport: it holds enough."""
        if self._partner:
            self._partner.hold(Hold.PARTNER_FULL)

    def resume_writing(self) -> None:
        """Called by our transport: it takes more."""
        if self._partner:
            self._partner.release(Hold.PARTNER_FULL)

    def close(self) -> None:
        """Closes this end after what was written to it has left."""
        if self.transport is not None:
            self.transport.close()

    def _give(self, data: bytes) -> None:
        if self._partner and self._partner.transport and not self._partner.transport.is_closing():
            self._partner.transport.write(data)

    def _end(self) -> None:
        """This end was read to its end of file; with both directions ended, the pipe is over."""
        self.ended = True
        self._pass_end()

    def _pass_end(self) -> None:
        partner = self._partner
        if partner is None or partner.transport is None:
            return
        with contextlib.suppress(OSError):  # a socket whose program has just gone
            partner.transport.write_eof()
        if partner.ended:
            self.close()
            partner.close()

    def _lost(self) -> None:
        self.transport = None
        if self._partner is not None:
            self._partner.close()


class PipeSet:
    """The pipes of one SSH connection.

    A full SSH transport holds all their sockets: asyncssh itself would go on queueing packets for a peer that
    does not read, up to the window that this peer chose. So does a key exchange, during which it puts packets
    aside: the peer may never go on with it. Ends with the connection: its sockets are closed.
    """

    def __init__(self) -> None:
        self._ends: set[SocketEnd] = set()
        self._of_target: Counter[str] = Counter()
        self._full = False
        self._conn: SSHConnection | None = None
        self._looking = False
        self.closed = False
        self.received_bytes = 0
        """That the peer has sent through its channels, uncompressed."""

    def __len__(self) -> int:
        return len(self._ends)

    def watch(self, conn: SSHConnection) -> None:
        """Call when the connection is made."""
        self._conn = conn
        conn.pause_writing = self._pause  # type: ignore[method-assign]
        conn.resume_writing = self._resume  # type: ignore[method-assign]

    def close(self) -> None:
        """Call when the connection is lost."""
        self.closed = True
        for end in list(self._ends):
            end.close()

    def add(self, end: SocketEnd) -> None:
        """Counts and holds a socket with the others."""
        self._ends.add(end)
        self._of_target[end.target] += 1
        if self._full:
            end.hold(Hold.CONNECTION_FULL)
        if self._looking:
            end.hold(Hold.KEY_EXCHANGE)
        if self.closed:
            end.abort()

    def discard(self, end: SocketEnd) -> None:
        """Forgets a socket that is closed."""
        if end in self._ends:
            self._ends.discard(end)
            self._of_target[end.target] -= 1

    def close_target(self, target: str) -> int:
        """Closes all pipes to `target`; returns how many there were."""
        ends = [end for end in self._ends if end.target == target]
        for end in ends:
            end.abort()
        return len(ends)

    def count(self, target: str) -> int:
        """Pipes to a target."""
        return self._of_target[target]

    def targets(self) -> set[str]:
        """The targets that have pipes now."""
        return {end.target for end in self._ends}

    def sent(self) -> None:
        """Call after something was given to the connection."""
        if not self._looking and self._put_aside():
            self._looking = True
            for end in list(self._ends):
                end.hold(Hold.KEY_EXCHANGE)
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look)

    def _put_aside(self) -> bool:
        """Whether packets wait for the end of a key exchange; asyncssh tells it nowhere."""
        return self._conn is not None and bool(self._conn._deferred_packets)  # noqa: SLF001

    def _look(self) -> None:
        if self._put_aside() and not self.closed:
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look)
            return
        self._looking = False
        for end in list(self._ends):
            end.release(Hold.KEY_EXCHANGE)

    def _pause(self) -> None:
        self._full = True
        for end in list(self._ends):
            end.hold(Hold.CONNECTION_FULL)

    def _resume(self) -> None:
        self._full = False
        for end in list(self._ends):
            end.release(Hold.CONNECTION_FULL)


class SocketEnd(_End, asyncio.Protocol):
    """The end that is a unix socket."""

    def __init__(self, pipes: PipeSet, target: str) -> None:
        """Args: pipes: those of its connection; target: the logical name it leads to or from."""
        super().__init__()
        self.target = target
        self._pipes = pipes
        self._early: list[bytes] = []
        self._lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self.transport = cast(asyncio.Transport, transport)
        self.hold(Hold.ALONE)
        self._pipes.add(self)

    def join(self, channel: ChannelEnd) -> None:
        """The channel is open: the pipe is complete."""
        self._partner = channel
        for data in self._early:
            self._give(data)
        self._early.clear()
        if self.ended:
            self._pass_end()
        if self.transport is None:
            channel.close()
        else:
            self.release(Hold.ALONE)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._partner is None:  # event loops may read once, to the end even, in spite of the hold
            self._early.append(data)
        else:
            self._give(data)
            self._pipes.sent()

    def eof_received(self) -> bool:
        """Called by asyncio; True keeps the other direction open."""
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._lingering:
            self._lingering.cancel()
        self._lost()
        self._pipes.discard(self)

    def close(self) -> None:
        """Closes the socket after what was written to it has left, or after a minute without progress."""
        super().close()
        if self.transport is not None and self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER_S, self.abort)

    def abort(self) -> None:
        """Closes the socket at once."""
        if self.transport is not None:
            self.transport.abort()


class ChannelEnd(_End, asyncssh.SSHUNIXSession[bytes]):
    """The end that is an SSH channel."""

    def __init__(self, socket_end: SocketEnd, pipes: PipeSet) -> None:
        super().__init__()
        self._pipes = pipes
        self._socket_end = socket_end
        self._partner = socket_end

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        """Called by asyncssh."""
        self.transport = cast(_Transport, chan)

    def session_started(self) -> None:
        """Called by asyncssh when the channel is open at both ends."""
        self._socket_end.join(self)

    def data_received(self, data: bytes, datatype: object = None) -> None:
        """Called by asyncssh."""
        self._pipes.received_bytes += len(data)
        self._give(data)

    def eof_received(self) -> bool:
        """Called by asyncssh; True keeps the other direction open."""
        self._end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh."""
        self._lost()


async def connect_target(path: Path, pipes: PipeSet, target: str, *, site: str = "") -> ChannelEnd:
    """Accepting side of a channel: connects the target first, and returns the session for asyncssh.

    Args:
        path: the target's socket.
        pipes: those of the connection.
        target: its logical name.
        site: who has logged in, where the target is to know (`site_name`).

    Raises:
        OSError: the target does not answer.
    """
    loop = asyncio.get_running_loop()
    sock = site_name.bound(site) if site else socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, str(path))
        _, end = await loop.create_unix_connection(lambda: SocketEnd(pipes, target), sock=sock)
    except BaseException:
        sock.close()
        raise
    return ChannelEnd(end, pipes)


async def carry(conn: SSHConnection, sock: socket.socket, pipes: PipeSet, name: str) -> None:
    """Opening side of a channel: `sock` is held until the far side has accepted, and closed if it does not.

    Raises:
        asyncssh.ChannelOpenError: the far side refused, or the connection was lost.
    """
    loop = asyncio.get_running_loop()
    _, end = await loop.connect_accepted_socket(lambda: SocketEnd(pipes, name), sock)
    try:
        await conn.create_unix_connection(
            lambda: ChannelEnd(end, pipes), name, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
        )
    except BaseException:
        end.abort()
        raise
