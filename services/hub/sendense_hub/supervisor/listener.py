# SPDX-License-Identifier: Apache-2.0
"""The hub's TCP listener: opened once, by one process, so that a second hub on the port is refused."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import NoReturn

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_hub.gateway import handover
from sendense_hub.supervisor.gateways import Gateways

log = logging.getLogger(__name__)

# A queue that is full drops agents' connections too, and they come back after seconds only.
_BACKLOG = 4096
_PAUSE_S = 0.5


def listen(host: str, port: int) -> socket.socket:
    """Binds and listens; port 0 takes a free one. No SO_REUSEPORT: it would let a second hub bind unnoticed.

    Raises:
        SendenseError: SERVICE_UNAVAILABLE when the address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SendenseError(
            Reason.REASON_SERVICE_UNAVAILABLE,
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            remedy="Stop what listens there (another hub?), or choose another address with --listen.",
        ) from error
    listening.setblocking(False)
    return listening


async def accept(listening: socket.socket, gateways: Gateways) -> NoReturn:
    """Accepts connections and hands each to the gateway with the fewest."""
    while True:
        try:
            # Not `loop.sock_accept`: cancelled at the wrong moment, it loses what it has accepted.
            sock, _ = listening.accept()
        except BlockingIOError:
            await handover.readable(listening)
            continue
        except OSError as error:  # no descriptors left, say
            log.warning("accepting a connection: %s", error)
            await asyncio.sleep(_PAUSE_S)
            continue
        with sock:
            await gateways.hand_over(sock)
        await asyncio.sleep(0)  # a thousand that come at once must not keep everything else waiting
