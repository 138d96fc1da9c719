# SPDX-License-Identifier: Apache-2.0
"""What a connection may make this process do and keep for it.

asyncssh reads whatever comes: also while it waits for an answer of ours before it can go on, and while the
peer reads none of the replies that its requests cause. Both would grow without an end, so the socket is not
read while either is above its bound; a peer that stays deaf is then given up by keepalive.

And it handles whatever comes at once: an agent that sends nothing but small requests would take all the time
of a gateway. Packets that carry data are as many as there is data; of others an agent has a limited number.
"""

from __future__ import annotations

import asyncio
import collections
import time
from typing import Any, cast

import asyncssh

from sendense_common.tunnel import PipeSet

# What came and was not looked at yet. The longest packet has 256 KiB and a little.
_LONGEST_UNREAD_BYTES = 1024 * 1024
# Replies and data that wait for the peer. Pipes stop much earlier; this is for replies to requests.
_LONGEST_UNSENT_BYTES = 8 * 1024 * 1024
_LOOK_AGAIN_S = 0.02
# What came in small packets is handled in small bites: a large one may hold thousands.
_BITE_BYTES = 8 * 1024
_SMALL_PACKET_BYTES = 4 * 1024
# One core handles about 10,000 packets of data a second, and much fewer requests that want an answer.
_PACKETS_PER_S = 500.0
_PACKETS_AT_ONCE = 2000.0
_PACKET_OF_CHANNEL = 0.25
_IGNORE = 2  # SSH_MSG_IGNORE
# A packet of a channel for each of so many bytes costs nothing. Bytes as they go on from here: compressed, a
# full packet may have a hundred.
_BYTES_PER_PACKET = 1024
# Packets of channels that are full: their bytes go on later.
_PACKETS_NOT_YET = 256.0


class Allowance:
    """Small packets that somebody may send: so many at once, so many a second."""

    def __init__(self) -> None:
        self._left = _PACKETS_AT_ONCE
        self._counted_at = time.monotonic()

    def used_up(self) -> bool:
        """Whether it is time to wait."""
        now = time.monotonic()
        self._left = min(_PACKETS_AT_ONCE, self._left + (now - self._counted_at) * _PACKETS_PER_S)
        self._counted_at = now
        return self._left < 0

    def spend(self, packets: float) -> None:
        """That many were handled."""
        self._left -= packets


class BoundedReading:
    """Stands between a connection's socket and asyncssh."""

    def __init__(self, conn: asyncssh.SSHServerConnection, pipes: PipeSet) -> None:
        """Call when the connection is made. Args: pipes: of the connection."""
        self.allowance = Allowance()
        """Of this connection; to be replaced by that of its agent at login."""
        self._conn = conn
        self._pipes = pipes
        self._receive = conn.data_received
        self._waiting: collections.deque[bytes] = collections.deque()
        self._requests = 0
        self._small = 0.0
        """Packets of channels, less those that their bytes allow."""
        self._log = conn.log_received_packet
        conn.data_received = self._received  # type: ignore[method-assign]
        conn.log_received_packet = self._count_request  # type: ignore[method-assign,assignment]

    def _received(self, data: bytes, datatype: object = None) -> None:
        self._waiting.append(data)
        self._work()

    def _work(self) -> None:
        """Handles what waits; comes back if that must stop for now."""
        if self._gone():
            return
        while self._waiting and not self._must_wait():
            self._take(self._next())
        if self._waiting or self._must_wait():
            self._transport().pause_reading()
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._work)
        elif not self._gone():
            self._transport().resume_reading()

    def _next(self) -> bytes:
        """A bite, or all of a chunk that is in the middle of a large packet."""
        data = self._waiting.popleft()
        small = self._conn._pktlen < _SMALL_PACKET_BYTES  # noqa: SLF001
        if not small or len(data) <= _BITE_BYTES:
            return data
        self._waiting.appendleft(data[_BITE_BYTES:])
        return data[:_BITE_BYTES]

    def _take(self, data: bytes) -> None:
        packets, requests, carried = self._conn._recv_seq, self._requests, self._pipes.received_bytes  # noqa: SLF001
        self._receive(data)
        requests = self._requests - requests
        packets = self._conn._recv_seq - packets - requests  # noqa: SLF001 - nothing else counts them
        self._small += packets - (self._pipes.received_bytes - carried) / _BYTES_PER_PACKET
        beyond = max(0.0, self._small - _PACKETS_NOT_YET)
        self._small = max(-_PACKETS_NOT_YET, self._small - beyond)
        self.allowance.spend(requests + beyond * _PACKET_OF_CHANNEL)

    def _count_request(self, kind: int, *facts: Any) -> None:
        """Called for each packet that is for no open channel."""
        # asyncssh sends an empty one of these before each other packet, so they count as packets of data do.
        self._requests += kind != _IGNORE
        self._log(kind, *facts)

    def _must_wait(self) -> bool:
        return not self._gone() and (
            len(self._conn._inpbuf) > _LONGEST_UNREAD_BYTES  # noqa: SLF001 - it has no other name
            or self._transport().get_write_buffer_size() > _LONGEST_UNSENT_BYTES
            or self.allowance.used_up()
        )

    def _gone(self) -> bool:
        return self._transport() is None or self._transport().is_closing()

    def _transport(self) -> asyncio.Transport:
        return cast(asyncio.Transport, self._conn._transport)  # noqa: SLF001
