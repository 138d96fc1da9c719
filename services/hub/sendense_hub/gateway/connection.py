# SPDX-License-Identifier: Apache-2.0
"""One SSH connection of an agent, and what it may do with it.

Two things exist: opening a logical name ("nbd/<export>", "credentials", "telemetry"), which the authority
maps to a unix socket, and one listen on "/agent", which becomes this agent's socket in the hub's run
directory. Everything else SSH knows is refused and logged with the key's fingerprint. Callbacks return
sessions and listeners of our own, never True: that would open or bind the path that the client names.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import NoReturn

import asyncssh

from sendense_common.errors import SendenseError
from sendense_common.tunnel import (
    PACKET_BYTES,
    REVERSE_PATH,
    WINDOW_BYTES,
    PipeSet,
    PublishedSocket,
    carry,
    connect_target,
)
from sendense_hub.gateway.authority import Authority, is_refusal
from sendense_hub.gateway.limits import Limits

log = logging.getLogger(__name__)

_TARGETS = re.compile(r"nbd/[A-Za-z0-9_.-]{1,128}|credentials|telemetry")
_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TRY_LATER = "authorization is not available, try later"


class ReversePath(asyncssh.SSHListener):
    """The hub's socket that leads to one agent."""

    def __init__(self, conn: asyncssh.SSHServerConnection, pipes: PipeSet, path: Path, limit: int) -> None:
        """Publishes it; OSError if that does not work."""
        super().__init__()
        self._conn = conn
        self._pipes = pipes
        self._limit = limit
        self._opening: set[asyncio.Task[None]] = set()
        self._published = PublishedSocket(path, self._accepted)

    @property
    def published(self) -> PublishedSocket:
        """The socket under its name."""
        return self._published

    def publish_again(self) -> None:
        """Puts the name back that somebody removed."""
        self._published.close()
        self._published = PublishedSocket(self._published.path, self._accepted)

    def close(self) -> None:
        """Called by asyncssh too: the listen was cancelled, or the connection is lost."""
        self._published.close()

    def _accepted(self, sock: socket.socket) -> None:
        if len(self._pipes) >= self._limit:
            log.warning("too many channels to the agent behind %s", self._published.path)
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._carry(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _carry(self, sock: socket.socket) -> None:
        try:
            await carry(self._conn, sock, self._pipes, REVERSE_PATH)
        except (asyncssh.Error, OSError) as error:
            log.warning("the agent behind %s did not take a channel: %s", self._published.path, error)


class AgentConnection(asyncssh.SSHServer):
    """Callbacks of one connection."""

    def __init__(self, authority: Authority, agents_dir: Path, limits: Limits, roster: Roster) -> None:
        self._authority = authority
        self._agents_dir = agents_dir
        self._limits = limits
        self._roster = roster
        self._conn: asyncssh.SSHServerConnection | None = None
        self._opening = 0
        self._claimed = ""
        self.pipes = PipeSet()
        self.agent_id = ""
        """Empty before login."""
        self.fingerprint = "none"
        """Of the key that logged in, or of the last one shown."""
        self.reverse: ReversePath | None = None

    def __str__(self) -> str:
        peer = self._conn.get_extra_info("peername", ("?",)) if self._conn else ("?",)
        return f"agent={self.agent_id or self._claimed or '?'} key={self.fingerprint} from={peer[0]}"

    # --- life ---

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Called by asyncssh."""
        self._conn = conn
        self.pipes.watch(conn)

    def public_key_auth_supported(self) -> bool:
        """Called by asyncssh: the only way in."""
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Called by asyncssh: whether the key is that of the agent it claims to be."""
        # What was asked about last is what logged in: asyncssh cancels a login that another one overtakes.
        self._claimed, self.fingerprint = username, key.get_fingerprint()
        try:
            agent_id = await self._authority.identify(self.fingerprint)
        except SendenseError as error:
            if is_refusal(error):
                return self._refused("login", username, "nobody registered this key")
            self._refused("login", username, str(error))
            raise asyncssh.ServiceNotAvailable(_TRY_LATER) from error
        if agent_id != username or not _AGENT_ID.fullmatch(agent_id):
            return self._refused("login", username, f"the key belongs to {agent_id!r}")
        return True

    def auth_completed(self) -> None:
        """Called by asyncssh."""
        self.agent_id = self._claimed
        log.info("connected %s", self)
        self._roster.add(self)
        if self._roster.count(self.agent_id) > self._limits.connections_per_agent:
            self.end("too many connections of this agent")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh."""
        self._roster.discard(self)
        self.pipes.close()
        if self.reverse:
            self.reverse.close()
        if self.agent_id:
            log.info("disconnected %s: %s", self, exc or "closed")

    def end(self, why: str) -> None:
        """Ends the connection and tells the agent why."""
        log.warning("closing %s: %s", self, why)
        if self._conn:
            # The usual code, BY_APPLICATION, would hide the reason from the agent.
            self._conn.disconnect(asyncssh.DISC_HOST_NOT_ALLOWED_TO_CONNECT, why)

    # --- what is permitted ---

    def unix_connection_requested(
        self, dest_path: str
    ) -> tuple[asyncssh.SSHUNIXChannel[bytes], Awaitable[asyncssh.SSHUNIXSession[bytes]]]:
        """Called by asyncssh: the agent opens a logical name."""
        if not _TARGETS.fullmatch(dest_path):
            self._deny("open", dest_path, "no such name")
        if len(self.pipes) + self._opening >= self._limits.channels_per_connection:
            self._deny("open", dest_path, "too many channels", asyncssh.OPEN_RESOURCE_SHORTAGE)
        assert self._conn is not None
        self._opening += 1
        channel = self._conn.create_unix_channel(window=WINDOW_BYTES, max_pktsize=PACKET_BYTES)
        return channel, self._open(dest_path)

    async def _open(self, target: str) -> asyncssh.SSHUNIXSession[bytes]:
        """Anything but ChannelOpenError would end the whole connection."""
        try:
            path = await self._authority.authorize(self.fingerprint, target)
            session = await connect_target(path, self.pipes, target)
        except SendenseError as error:
            if is_refusal(error):
                self._deny("open", target, error.message)
            self._deny("open", target, f"{_TRY_LATER} ({error})", asyncssh.OPEN_RESOURCE_SHORTAGE)
        except OSError as error:
            self._deny("open", target, f"its socket does not answer: {error}", asyncssh.OPEN_CONNECT_FAILED)
        finally:
            self._opening -= 1
        if self.pipes.closed:
            self._deny("open", target, "the connection was closed", asyncssh.OPEN_CONNECT_FAILED)
        return session

    def unix_server_requested(self, listen_path: str) -> ReversePath | bool:
        """Called by asyncssh: the agent publishes its socket."""
        assert self._conn is not None
        why = ""
        if listen_path != REVERSE_PATH:
            why = "no such name"
        elif self.reverse is not None and not self.reverse.published.closed:
            why = "this connection listens already"
        if not why:
            try:
                self.reverse = ReversePath(
                    self._conn,
                    self.pipes,
                    self._agents_dir / f"{self.agent_id}.sock",
                    self._limits.channels_per_connection,
                )
            except OSError as error:
                why = f"cannot publish it: {error}"
            else:
                return self.reverse
        self._conn.send_debug(f"{listen_path}: {why}")  # the reply itself has no room for a reason
        return self._refused("listen", listen_path, why)

    # --- what is refused ---

    def session_requested(self) -> NoReturn:
        """Called by asyncssh: shell, command, subsystem, SFTP, X11 and agent forwarding begin here."""
        self._deny("session", "session", "not permitted")

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> NoReturn:
        """Called by asyncssh."""
        self._deny("direct-tcpip", f"{dest_host}:{dest_port}", "not permitted")

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        """Called by asyncssh."""
        return self._refused("tcpip-forward", f"{listen_host}:{listen_port}", "not permitted")

    def tun_requested(self, unit: int | None) -> NoReturn:
        """Called by asyncssh."""
        self._deny("tun", str(unit), "not permitted")

    def tap_requested(self, unit: int | None) -> NoReturn:
        """Called by asyncssh."""
        self._deny("tap", str(unit), "not permitted")

    def _refused(self, what: str, name: str, why: str) -> bool:
        log.warning("refused %s %r: %s (%s)", what, name, why, self)
        return False

    def _deny(
        self, what: str, name: str, why: str, code: int = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    ) -> NoReturn:
        self._refused(what, name, why)
        raise asyncssh.ChannelOpenError(code, f"{name}: {why}")


class Roster:
    """The logged-in connections of this gateway."""

    def __init__(self) -> None:
        self._connections: set[AgentConnection] = set()

    def __iter__(self) -> Iterator[AgentConnection]:
        return iter(list(self._connections))

    def add(self, connection: AgentConnection) -> None:
        """After login."""
        self._connections.add(connection)

    def discard(self, connection: AgentConnection) -> None:
        """After it was lost."""
        self._connections.discard(connection)

    def count(self, agent_id: str) -> int:
        """Connections of one agent."""
        return sum(each.agent_id == agent_id for each in self._connections)
