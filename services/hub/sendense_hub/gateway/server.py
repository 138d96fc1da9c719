# SPDX-License-Identifier: Apache-2.0
"""The gateway process: takes connections from the supervisor and serves SSH on each."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time

import asyncssh

from sendense_common.paths import HubPaths, private_dir
from sendense_common.tunnel import ENCRYPTION, compression_algs, tune_malloc
from sendense_hub.gateway import authority, revocation
from sendense_hub.gateway.connection import AgentConnection, Roster
from sendense_hub.gateway.handover import GatewayEnd
from sendense_hub.gateway.limits import Limits
from sendense_hub.gateway.reports import Reports
from sendense_hub.gateway.strangers import Strangers

log = logging.getLogger(__name__)

_CROWD_EVERY_S = 1.0


class Seldom:
    """Writes warnings that others can cause at will: one in a while, and how many were left out."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next = 0.0
        self._left_out = 0

    def say(self, text: str, *values: object) -> None:
        """As `log.warning`."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        log.warning(text, *values)
        if self._left_out:
            log.warning("the line above stands for %d more before it", self._left_out)
        self._next, self._left_out = now + self._every_s, 0


class Gateway:
    """Serves SSH on accepted sockets."""

    def __init__(self, paths: HubPaths, limits: Limits, asked: authority.Authority) -> None:
        self._paths = paths
        self._limits = limits
        self._authority = asked
        self._logging_in: dict[str, dict[asyncio.Task[None], None]] = {}
        """By address; the oldest first."""
        self._crowd = Seldom(_CROWD_EVERY_S)
        self._strangers = Strangers(limits)
        self.roster = Roster()
        self.reports = Reports()
        self._options = asyncssh.SSHServerConnectionOptions(
            server_host_keys=[str(paths.host_key_file)],
            server_factory=self._connection,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            agent_forwarding=False,
            x11_forwarding=False,
            allow_pty=False,
            allow_scp=False,
            encryption_algs=ENCRYPTION,
            compression_algs=compression_algs(zstd=True),
            login_timeout=limits.login_timeout_s,
            keepalive_interval=limits.keepalive_s,
            keepalive_count_max=2,
        )

    async def serve(self, sock: socket.socket) -> None:
        """Serves one connection until it ends."""
        address = _address(sock)
        self._make_room(address)
        task = asyncio.current_task()
        assert task is not None
        self._logging_in.setdefault(address, {})[task] = None
        try:
            conn = await asyncssh.run_server(sock, options=self._options)
        except (asyncssh.Error, OSError, TimeoutError, ValueError) as error:
            # ValueError: what asyncssh says to bytes that are no text or no packet.
            log.info("a connection from %s ended before login: %s", address, error or type(error).__name__)
            return
        except asyncio.CancelledError:
            sock.close()  # asyncssh may not have taken it yet
            raise
        finally:
            self._forget(address, task)
        await conn.wait_closed()

    def close(self) -> None:
        """Ends all connections."""
        for connection in [*self.roster, *self._strangers]:
            connection.end("the hub's gateway stops")

    def _make_room(self, address: str) -> None:
        """The oldest that has not logged in gives way: who is honest needs a moment, who is not would stay.

        It is one from the same address if that has its number, else one from where most are.
        """
        tasks = self._logging_in.get(address, {})
        if len(tasks) < self._limits.logins_per_address:
            if sum(map(len, self._logging_in.values())) < self._limits.logins:
                return
            address, tasks = max(self._logging_in.items(), key=lambda each: len(each[1]))
        self._crowd.say("a connection from %s gives way: %d there have not logged in", address, len(tasks))
        oldest = next(iter(tasks))
        self._forget(address, oldest)
        oldest.cancel()

    def _forget(self, address: str, task: asyncio.Task[None]) -> None:
        tasks = self._logging_in.get(address, {})
        tasks.pop(task, None)
        if not tasks:
            self._logging_in.pop(address, None)

    def _connection(self) -> AgentConnection:
        return AgentConnection(
            self._authority, self.reports, self._paths, self._limits, self.roster, self._strangers
        )


async def run(paths: HubPaths, limits: Limits, handover: GatewayEnd, stopping: asyncio.Event) -> None:
    """Serves what is handed over until `stopping` is set or the supervisor is gone."""
    tune_malloc()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each channel is one
    # asyncio says so for each write to a connection that is lost, and has nobody to tell that it may stop.
    logging.getLogger("asyncio").addFilter(lambda record: "socket.send() raised" not in str(record.msg))
    private_dir(paths.agents_dir)
    async with authority.connect(paths.authorization_socket) as asked, asyncio.TaskGroup() as tasks:
        gateway = Gateway(paths, limits, asked)
        serving: set[asyncio.Task[None]] = set()

        async def serve(sock: socket.socket) -> None:
            try:
                await gateway.serve(sock)
            except Exception:  # one connection's defect is not the others' end
                log.exception("defect in serving a connection")
            finally:
                handover.ended()

        async def take() -> None:
            async for sock in handover.connections():
                task = tasks.create_task(serve(sock))
                serving.add(task)
                task.add_done_callback(serving.discard)
            stopping.set()

        background = [
            tasks.create_task(take()),
            tasks.create_task(gateway.reports.send_all(asked)),
            tasks.create_task(revocation.watch(asked, gateway.roster)),
            tasks.create_task(revocation.recheck(asked, gateway.roster, limits.recheck_s)),
        ]
        await stopping.wait()
        gateway.close()
        for task in [*background, *serving]:
            task.cancel()


def _address(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except (OSError, IndexError):
        return "?"
