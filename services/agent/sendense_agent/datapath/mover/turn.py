# SPDX-License-Identifier: Apache-2.0
"""libnbd connections that one thread lets go on."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence

import nbd

POLL_MS = 100
"""Longest wait: what else there is to do is looked at so often."""


def turn(handles: Sequence[nbd.NBD], timeout_ms: int) -> tuple[bool, list[tuple[nbd.NBD, str]]]:
    """Waits for any of the connections, and lets libnbd go on with those that can.

    Returns:
        Whether anything could be sent; and the connections that are gone, with why.
    """
    poll = select.poll()
    by_descriptor = {}
    for handle in handles:
        if handle.aio_is_dead() or handle.aio_is_closed():
            return False, [(handle, "the connection was closed")]
        direction = handle.aio_get_direction()
        mask = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
        mask |= select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0
        descriptor = handle.aio_get_fd()
        by_descriptor[descriptor] = handle
        poll.register(descriptor, mask)
    sent, gone = False, []
    for descriptor, found in poll.poll(timeout_ms):
        handle = by_descriptor[descriptor]
        direction = handle.aio_get_direction()
        try:
            if (
                found & (select.POLLIN | select.POLLHUP | select.POLLERR)
                and direction & nbd.AIO_DIRECTION_READ
            ):
                handle.aio_notify_read()
            elif found & (select.POLLOUT | select.POLLERR) and direction & nbd.AIO_DIRECTION_WRITE:
                handle.aio_notify_write()
                sent = True
        except nbd.Error as error:
            gone.append((handle, error.string))
    return sent, gone


def blocks(handle: nbd.NBD, block_bytes: int, meanwhile: Callable[[], None]) -> Iterator[bytes]:
    """All of an export, from its beginning; nbd.Error."""
    size = handle.get_size()
    for offset in range(0, size, block_bytes):
        block = bytearray(min(block_bytes, size - offset))
        cookie = handle.aio_pread(block, offset)
        while not handle.aio_command_completed(cookie):
            handle.poll(POLL_MS)
            meanwhile()
        yield bytes(block)
