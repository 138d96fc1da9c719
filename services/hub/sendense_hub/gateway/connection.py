# SPDX-License-Identifier: Apache-2.0
"""One SSH connection of an agent, and what it may do with it.

Two things exist: opening a logical name ("nbd/<export>", "credentials", "telemetry"), which the authority
maps to a unix socket, and one listen on "/agent", which becomes this agent's socket in the hub's run
directory. Whoever is not known may log in as a stranger, who may open "enrolment" and nothing else.
Everything else SSH knows is refused and logged with the key's fingerprint. Callbacks return sessions and
listeners of our own, never True: that would open or bind the path that the client names.
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

from sendense.common.v1.reason_pb2 import Reason
from sendense.hub.v1.authorization_service_pb2 import ReportRefusalRequest
from sendense_common.errors import SendenseError
from sendense_common.paths import HubPaths
from sendense_common.tunnel import (
    ENROLMENT_TARGET,
    ENROLMENT_USER,
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
from sendense_hub.gateway.reading import Allowance, BoundedReading
from sendense_hub.gateway.reports import Reports
from sendense_hub.gateway.strangers import Strangers

log = logging.getLogger(__name__)

_TARGETS = re.compile(r"nbd/[A-Za-z0-9_.-]{1,128}|credentials|telemetry|enrolment")
_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_CHANNELS_OF_STRANGERS = 2
# What all sites use: these are told which site it is, and how much of them it has.
_SERVICES = ("credentials", "telemetry")
_TRY_LATER = "authorization is not available, try later"
# A name may have 256 KiB: neither the log nor the reply repeats all of it.
_SHOWN_CHARACTERS = 160


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

    def __init__(
        self,
        authority: Authority,
        reports: Reports,
        paths: HubPaths,
        limits: Limits,
        roster: Roster,
        strangers: Strangers,
    ) -> None:
        self._authority = authority
        self._reports = reports
        self._paths = paths
        self._limits = limits
        self._roster = roster
        self._strangers = strangers
        self._stranger = False
        self._conn: asyncssh.SSHServerConnection | None = None
        self._opening = 0
        self._opening_services = 0
        self._refusals = 0
        self._keys_shown = 0
        self._reading: BoundedReading | None = None
        self._claimed = ""
        self.pipes = PipeSet()
        self.agent_id = ""
        """Empty before login."""
        self.fingerprint = "none"
        """Of the key that logged in, or of the last one shown."""
        self.reverse: ReversePath | None = None

    def __str__(self) -> str:
        who = self.agent_id or _shown(self._claimed) or "?"
        return f"agent={who} key={self.fingerprint} from={self.address}"

    @property
    def address(self) -> str:
        """Where it comes from."""
        return str(self._conn.get_extra_info("peername", ("?",))[0]) if self._conn else "?"

    @property
    def services(self) -> int:
        """Channels to what all sites use, open and opening."""
        return self._opening_services + sum(self.pipes.count(target) for target in _SERVICES)

    # --- life ---

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Called by asyncssh."""
        self._conn = conn
        self.pipes.watch(conn)
        self._reading = BoundedReading(conn, self.pipes)
        self._log_unknown_kinds(conn)

    def _log_unknown_kinds(self, conn: asyncssh.SSHServerConnection) -> None:
        """Channels of kinds that asyncssh does not know are refused without asking us."""
        send = conn.send_channel_open_failure

        def failed(channel: int, code: int, reason: str, lang: str) -> None:
            send(channel, code, reason, lang)
            if code == asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE:
                self._refused("open", "a channel", "no such kind")

        conn.send_channel_open_failure = failed  # type: ignore[method-assign,assignment]

    def public_key_auth_supported(self) -> bool:
        """Called by asyncssh: the only way in."""
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Called by asyncssh: whether the key is that of the agent it claims to be."""
        self._keys_shown += 1
        if self._keys_shown > self._limits.keys_per_login:
            self.end("too many keys")
            return False
        # What was asked about last is what logged in: asyncssh cancels a login that another one overtakes.
        self._claimed, self.fingerprint = username, key.get_fingerprint()
        self._stranger = username == ENROLMENT_USER
        if self._stranger:
            return True  # the key is what is to be enrolled
        try:
            agent_id = await self._authority.identify(self.fingerprint)
        except SendenseError as error:
            if is_refusal(error):
                revoked = error.reason == Reason.REASON_SITE_REVOKED
                why = "this key was revoked" if revoked else "nobody registered this key"
                return self._refused("login", username, why)
            self._refused("login", username, str(error))
            raise asyncssh.ServiceNotAvailable(_TRY_LATER) from error
        if agent_id != username or not _AGENT_ID.fullmatch(agent_id):
            return self._refused("login", username, f"the key belongs to {agent_id!r}")
        return True

    def auth_completed(self) -> None:
        """Called by asyncssh."""
        if self._stranger:
            log.info("connected to enrol: %s", self)
            if not self._strangers.let_in(self):
                self.end("too many agents enrol at this moment")
            return
        self.agent_id = self._claimed
        log.info("connected %s", self)
        self._roster.add(self)
        if self._reading:
            self._reading.allowance = self._roster.allowance(self.agent_id)
        if self._roster.count(self.agent_id) > self._limits.connections_per_agent:
            self.end("too many connections of this agent")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncssh."""
        self._roster.discard(self)
        self._strangers.gone(self)
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
        if self._stranger != (dest_path == ENROLMENT_TARGET) or not _TARGETS.fullmatch(dest_path):
            self._deny("open", dest_path, "no such name")
        most = _CHANNELS_OF_STRANGERS if self._stranger else self._limits.channels_per_connection
        if len(self.pipes) + self._opening >= most:
            self._deny("open", dest_path, "too many channels", asyncssh.OPEN_RESOURCE_SHORTAGE)
        if (
            dest_path in _SERVICES
            and self._roster.services(self.agent_id) >= self._limits.service_channels_per_agent
        ):
            self._deny("open", dest_path, "too many channels to services", asyncssh.OPEN_RESOURCE_SHORTAGE)
        assert self._conn is not None
        self._opening += 1
        self._opening_services += dest_path in _SERVICES
        channel = self._conn.create_unix_channel(window=WINDOW_BYTES, max_pktsize=PACKET_BYTES)
        return channel, self._open(dest_path)

    async def _open(self, target: str) -> asyncssh.SSHUNIXSession[bytes]:
        """Anything but ChannelOpenError would end the whole connection."""
        try:
            if self._stranger:
                path = self._paths.enrolment_socket
            else:
                path = await self._authority.authorize(self.fingerprint, target)
            site = self.agent_id if target in _SERVICES else ""
            session = await connect_target(path, self.pipes, target, site=site)
        except SendenseError as error:
            if is_refusal(error):
                self._deny("open", target, error.message)
            self._deny("open", target, f"{_TRY_LATER} ({error})", asyncssh.OPEN_RESOURCE_SHORTAGE)
        except OSError as error:
            self._deny("open", target, f"its socket does not answer: {error}", asyncssh.OPEN_CONNECT_FAILED)
        finally:
            self._opening -= 1
            self._opening_services -= target in _SERVICES
        if self.pipes.closed:
            self._deny("open", target, "the connection was closed", asyncssh.OPEN_CONNECT_FAILED)
        return session

    def unix_server_requested(self, listen_path: str) -> ReversePath | bool:
        """Called by asyncssh: the agent publishes its socket."""
        assert self._conn is not None
        why = ""
        if listen_path != REVERSE_PATH or self._stranger:
            why = "no such name"
        elif self.reverse is not None and not self.reverse.published.closed:
            why = "this connection listens already"
        if not why:
            try:
                self.reverse = ReversePath(
                    self._conn,
                    self.pipes,
                    self._paths.agents_dir / f"{self.agent_id}.sock",
                    self._limits.channels_per_connection,
                )
            except OSError as error:
                why = f"cannot publish it: {error}"
            else:
                return self.reverse
        self._conn.send_debug(f"{_shown(listen_path)}: {why}")  # the reply itself has no room for a reason
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
        log.warning("refused %s %r: %s (%s)", what, _shown(name), why, self)
        self._reports.add(
            ReportRefusalRequest(
                fingerprint=self.fingerprint,
                agent_id=self.agent_id,
                claimed_agent_id=_shown(self._claimed),
                address=str(self._conn.get_extra_info("peername", ("?",))[0]) if self._conn else "?",
                request=what,
                target=_shown(name),
                cause=_shown(why),
            )
        )
        self._refusals += 1
        if self._refusals > self._limits.refusals_per_connection:
            self.end("too many requests that are not permitted")
        return False

    def _deny(
        self, what: str, name: str, why: str, code: int = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    ) -> NoReturn:
        self._refused(what, name, why)
        raise asyncssh.ChannelOpenError(code, f"{_shown(name)}: {why}")


def _shown(name: str) -> str:
    return name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "…"


class Roster:
    """The logged-in connections of this gateway."""

    def __init__(self) -> None:
        self._connections: set[AgentConnection] = set()
        self._allowances: dict[str, Allowance] = {}

    def __iter__(self) -> Iterator[AgentConnection]:
        return iter(list(self._connections))

    def add(self, connection: AgentConnection) -> None:
        """After login."""
        self._connections.add(connection)

    def discard(self, connection: AgentConnection) -> None:
        """After it was lost."""
        self._connections.discard(connection)

    def allowance(self, agent_id: str) -> Allowance:
        """One for all connections of an agent, also those to come."""
        return self._allowances.setdefault(agent_id, Allowance())

    def count(self, agent_id: str) -> int:
        """Connections of one agent."""
        return sum(each.agent_id == agent_id for each in self._connections)

    def services(self, agent_id: str) -> int:
        """Channels of all connections of one agent to what all sites use."""
        return sum(each.services for each in self._connections if each.agent_id == agent_id)
