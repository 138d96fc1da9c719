# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the tunnel: dial the hub, open its logical names, publish one local socket there.

Trusts exactly one host key and takes nothing from ~/.ssh, an SSH agent or the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from sendense.common.v1.reason_pb2 import Reason
from sendense_common.errors import SendenseError
from sendense_common.tunnel._keys import fingerprint, parse_public_key
from sendense_common.tunnel._pipe import PipeSet, carry, connect_target
from sendense_common.tunnel._published_socket import PublishedSocket
from sendense_common.tunnel._wire import (
    ENCRYPTION,
    PACKET_BYTES,
    REVERSE_PATH,
    SUPERSEDED,
    WINDOW_BYTES,
    compression_algs,
)

log = logging.getLogger(__name__)

# Offsets in Linux's struct tcp_info (4.19 and later).
_TCP_INFO_BYTES = 208
_BYTES_RECEIVED_AT = 128
_BYTES_SENT_AT = 200


@dataclass(frozen=True)
class TunnelConfig:
    """Where the hub is and who we are."""

    host: str
    """Name or address of the hub."""
    port: int
    """Its SSH port."""
    agent_id: str
    """The site's name, as it is registered with our key."""
    private_key_file: Path
    """Our private key, OpenSSH format, without a passphrase."""
    hub_host_key: str
    """The hub's public host key, one OpenSSH line; no other is accepted. To enrol, its fingerprint "SHA256:…"
    is enough: see `Tunnel.hub_host_key`."""
    compression: bool = True
    """zstd on the wire; the hub may still choose none."""
    connect_timeout_s: float = 5.0
    """For TCP, to each address of the hub. A lost SYN is sent again ever later: a new try asks sooner."""
    login_timeout_s: float = 20.0
    """For key exchange and login."""
    keepalive_s: float = 10.0
    """A silent hub is asked this often, and given up after three times as long."""


class _Client(asyncssh.SSHClient):
    """Callbacks of one connection."""

    def __init__(self, pipes: PipeSet, pinned: str) -> None:
        self._pipes = pipes
        self._pinned = pinned
        self.lost_because: Exception | None = None
        self.hub_says = ""

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._pipes.watch(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost_because = exc
        self._pipes.close()

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        # Before anything is sent but the key exchange. Asked only about a key that is not known as a whole.
        return key.get_fingerprint() == self._pinned

    def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:
        # SSH has no place for the reason of a refused listen, so the hub says it this way.
        self.hub_says = msg


class Forward:
    """A local socket that leads to a logical name of the hub."""

    def __init__(self, target: str, path: Path) -> None:
        self.target = target
        self.path = path
        self.refusal: SendenseError | None = None
        """Why the hub did not open the newest connection; None when it did."""


class Tunnel:
    """One SSH connection to the hub; made by `dial`."""

    def __init__(self, conn: asyncssh.SSHClientConnection, client: _Client, pipes: PipeSet, hub: str) -> None:
        self._conn = conn
        self._client = client
        self._pipes = pipes
        self._hub = hub
        self._wire_bytes = (0, 0)

    @contextlib.asynccontextmanager
    async def forward(self, target: str, local_socket: Path) -> AsyncIterator[Forward]:
        """Has a local socket (mode 0600) whose connections lead to `target` at the hub, until the block ends.

        A connection that the hub refuses is closed without a byte; `Forward.refusal` has the reason.
        Connections that are open at the end of the block are closed.

        Args:
            target: "nbd/<export>", "credentials" or "telemetry".
            local_socket: replaces what is there.
        """
        forward = Forward(target, local_socket)
        opening: set[asyncio.Task[None]] = set()

        def accepted(sock: socket.socket) -> None:
            task = asyncio.get_running_loop().create_task(self._open(forward, sock))
            opening.add(task)
            task.add_done_callback(opening.discard)

        published = PublishedSocket(local_socket, accepted)
        try:
            yield forward
        finally:
            published.close()
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            self._pipes.close_target(target)

    async def publish(self, local_target: Path) -> None:
        """Has the hub's socket of this agent lead to `local_target`, as long as the tunnel lives.

        Raises:
            SendenseError: TUNNEL_REFUSED with the hub's words, or TUNNEL_LOST.
        """

        async def accept() -> asyncssh.SSHUNIXSession[bytes]:
            try:
                return await connect_target(local_target, self._pipes, REVERSE_PATH)
            except OSError as error:
                # Any other exception would end the whole connection.
                raise asyncssh.ChannelOpenError(
                    asyncssh.OPEN_CONNECT_FAILED, f"{local_target}: {error}"
                ) from error

        with self._translated():
            await self._conn.create_unix_server(
                accept, REVERSE_PATH, window=WINDOW_BYTES, max_pktsize=PACKET_BYTES
            )

    @property
    def hub_host_key(self) -> str:
        """The host key that the hub has shown, and that was the pinned one: an OpenSSH line."""
        key = self._conn.get_server_host_key()
        assert isinstance(key, asyncssh.SSHKey)
        return key.export_public_key().decode().strip()

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._conn.is_closed()

    @property
    def superseded(self) -> bool:
        """Whether the hub closed it because another connection published the same agent."""
        return SUPERSEDED in str(self._client.lost_because or "")

    async def wait_closed(self) -> SendenseError | None:
        """Returns when the connection is gone: why it was lost, or None if we closed it."""
        await self._conn.wait_closed()
        exc = self._client.lost_because
        if exc is None:
            return None
        return _lost(f"the connection to the hub at {self._hub} was lost: {exc}")

    def wire_bytes_sent(self) -> int:
        """Bytes sent on the TCP connection so far: compressed, encrypted, retransmissions included."""
        return self._read_wire_bytes()[0]

    def wire_bytes_received(self) -> int:
        """Bytes received on the TCP connection so far: compressed and encrypted."""
        return self._read_wire_bytes()[1]

    def _read_wire_bytes(self) -> tuple[int, int]:
        sock = self._conn.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # closed: what was read last stands
                info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                self._wire_bytes = (
                    struct.unpack_from("=Q", info, _BYTES_SENT_AT)[0],
                    struct.unpack_from("=Q", info, _BYTES_RECEIVED_AT)[0],
                )
        return self._wire_bytes

    async def _open(self, forward: Forward, sock: socket.socket) -> None:
        try:
            with self._translated():
                await carry(self._conn, sock, self._pipes, forward.target)
            forward.refusal = None
        except SendenseError as error:
            forward.refusal = error
            log.warning("%s could not be opened at the hub: %s", forward.target, error)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except asyncssh.ChannelOpenError as error:
            if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise SendenseError(
                    Reason.REASON_TUNNEL_REFUSED, f"the hub at {self._hub} refused: {error.reason}"
                ) from error
            if error.code == asyncssh.OPEN_RESOURCE_SHORTAGE:
                raise SendenseError(
                    Reason.REASON_SERVICE_UNAVAILABLE,
                    f"the hub at {self._hub} cannot open it now: {error.reason}",
                    remedy="Try again later.",
                ) from error
            raise _lost(f"the hub at {self._hub} did not open it: {error.reason}") from error
        except asyncssh.ChannelListenError as error:
            if self._conn.is_closed():
                raise _lost(f"the connection to the hub at {self._hub} was lost") from error
            words = self._client.hub_says or "no reason given"
            raise SendenseError(
                Reason.REASON_TUNNEL_REFUSED, f"the hub at {self._hub} refused: {words}"
            ) from error
        except (asyncssh.Error, OSError) as error:
            raise _lost(f"the connection to the hub at {self._hub} failed: {error}") from error


@contextlib.asynccontextmanager
async def dial(config: TunnelConfig) -> AsyncIterator[Tunnel]:
    """Connects and logs in; the connection is closed at the end of the block.

    Raises:
        SendenseError: TUNNEL_REFUSED when the hub shows another host key than the pinned one or does not know
            ours; SERVICE_UNAVAILABLE when it cannot decide now; TUNNEL_LOST when it cannot be reached.
    """
    hub = f"{config.host}:{config.port}"
    pipes = PipeSet()
    by_fingerprint = config.hub_host_key.startswith("SHA256:")
    pinned = config.hub_host_key if by_fingerprint else fingerprint(config.hub_host_key)
    client = _Client(pipes, pinned)
    known = [] if by_fingerprint else [parse_public_key(config.hub_host_key)]
    conn = await _connect(config, client, hub, known, pinned)
    tunnel = Tunnel(conn, client, pipes, hub)
    try:
        yield tunnel
    finally:
        tunnel.wire_bytes_sent()  # the last moment at which they can be read
        conn.close()
        await conn.wait_closed()


async def _connect(
    config: TunnelConfig, client: _Client, hub: str, known: list[asyncssh.SSHKey], pinned: str
) -> asyncssh.SSHClientConnection:
    sock: socket.socket | None = None
    try:
        sock = await _connect_tcp(config)
        return await asyncssh.connect(
            config.host,
            config.port,
            sock=sock,
            username=config.agent_id,
            client_factory=lambda: client,
            client_keys=[str(config.private_key_file)],
            known_hosts=(known, [], []),
            config=None,
            agent_path=None,
            preferred_auth=["publickey"],
            gss_host=None,
            encryption_algs=ENCRYPTION,
            compression_algs=compression_algs(zstd=config.compression),
            connect_timeout=config.login_timeout_s,
            login_timeout=config.login_timeout_s,
            keepalive_interval=config.keepalive_s,
            keepalive_count_max=2,
        )
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        if "hash mismatch" in str(error):  # a bit was changed on the way; says nothing about the key
            raise _lost(f"the handshake with the hub at {hub} was damaged on the way: {error}") from error
        raise SendenseError(
            Reason.REASON_TUNNEL_REFUSED,
            f"the hub at {hub} does not show the pinned host key {pinned}: {error}",
            remedy="Either this is not your hub, or its key was made anew: compare fingerprints at the hub "
            "(ssh-keygen -lf ssh_host_ed25519_key.pub) and enrol the agent again.",
            host_key=pinned,
        ) from error
    except asyncssh.PermissionDenied as error:
        raise SendenseError(
            Reason.REASON_TUNNEL_REFUSED,
            f"the hub at {hub} does not know the key of agent {config.agent_id!r} "
            f"({_own_fingerprint(config.private_key_file)})",
            remedy="Its key was revoked or replaced, or the site was never let in: have it invited at the "
            f"centre (`sendense agent invite {config.agent_id}`).",
        ) from error
    except asyncssh.ServiceNotAvailable as error:
        raise SendenseError(
            Reason.REASON_SERVICE_UNAVAILABLE,
            f"the hub at {hub} cannot check keys now: {error.reason}",
            remedy="Try again later.",
        ) from error
    except asyncssh.KeyImportError as error:
        if sock is not None:
            sock.close()
        raise SendenseError(
            Reason.REASON_INTERNAL, f"{config.private_key_file} is not a usable private key: {error}"
        ) from error
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise _lost(f"the hub at {hub} cannot be reached: {str(error) or type(error).__name__}") from error


async def _connect_tcp(config: TunnelConfig) -> socket.socket:
    """To the first address of the hub that answers; OSError."""
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, kind, protocol, _, address in await loop.getaddrinfo(
        config.host, config.port, type=socket.SOCK_STREAM
    ):
        with contextlib.ExitStack() as owned:
            sock = socket.socket(family, kind, protocol)
            owned.callback(sock.close)
            sock.setblocking(False)
            try:
                async with asyncio.timeout(config.connect_timeout_s):
                    await loop.sock_connect(sock, address)
            except OSError as error:  # TimeoutError is one
                last = error
            else:
                owned.pop_all()
                return sock
    raise last or OSError(f"{config.host} has no address")


def _own_fingerprint(path: Path) -> str:
    return asyncssh.read_private_key(path).get_fingerprint()


def _lost(message: str) -> SendenseError:
    return SendenseError(
        Reason.REASON_TUNNEL_LOST, message, remedy="Check the network path and that the hub runs."
    )
