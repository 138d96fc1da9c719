# SPDX-License-Identifier: Apache-2.0
"""A listening unix socket that only this user can open, published under its name when it listens.

The newest publisher of a name owns it: publishing replaces whatever is there in one step (rename), and an
owner that was replaced can tell. asyncio's own servers are not used: closing one that is just accepting
leaves that client hanging (Python 3.11).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_BACKLOG = 128
_PAUSE_S = 0.5
_serial = itertools.count()


class Owner(enum.Enum):
    """Whose socket is found under the name."""

    US = enum.auto()
    ANOTHER = enum.auto()
    NOBODY = enum.auto()


class PublishedSocket:
    """Listens from construction on, until `close`."""

    def __init__(self, path: Path, accepted: Callable[[socket.socket], None]) -> None:
        """Publishes.

        Args:
            path: the name; at most about 90 bytes.
            accepted: gets each connection (not blocking) and owns it from then on.

        Raises:
            OSError: the name cannot be used.
        """
        self.path = path
        self._accepted = accepted
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        hidden = path.with_name(f".{path.name}.{os.getpid()}.{next(_serial)}")
        self._listening = socket.socket(socket.AF_UNIX)
        try:
            self._listening.setblocking(False)
            self._listening.bind(str(hidden))
            hidden.chmod(0o600)  # nobody can connect before listen()
            self._listening.listen(_BACKLOG)
            self._inode = hidden.stat().st_ino
            hidden.rename(path)
        except OSError:
            self._listening.close()
            hidden.unlink(missing_ok=True)
            raise
        self._loop.add_reader(self._listening, self._accept)

    def owner(self) -> Owner:
        """Whose socket is under the name now."""
        try:
            return Owner.US if self.path.stat().st_ino == self._inode else Owner.ANOTHER
        except FileNotFoundError:
            return Owner.NOBODY

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._listening.fileno() < 0

    def close(self) -> None:
        """Stops listening and removes the name if it is still ours; may be called twice."""
        if self._pause:
            self._pause.cancel()
        if self.closed:
            return
        self._loop.remove_reader(self._listening)
        if self.owner() is Owner.US:
            self.path.unlink(missing_ok=True)
        self._listening.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors left, say: the connection stays queued
            log.warning("accepting on %s: %s", self.path, error)
            self._loop.remove_reader(self._listening)
            self._pause = self._loop.call_later(
                _PAUSE_S, self._loop.add_reader, self._listening, self._accept
            )
            return
        sock.setblocking(False)
        with contextlib.ExitStack() as owned:
            owned.callback(sock.close)
            self._accepted(sock)
            owned.pop_all()
