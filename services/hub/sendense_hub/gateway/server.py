# SPDX-License-Identifier: Apache-2.0
"""The gateway process: takes connections from the supervisor and serves SSH on each."""

from __future__ import annotations

import asyncio
import logging
import socket

import asyncssh

from sendense_common.paths import HubPaths, private_dir
from sendense_common.tunnel import ENCRYPTION, compression_algs, tune_malloc
from sendense_hub.gateway import authority, revocation
from sendense_hub.gateway.connection import AgentConnection, Roster
from sendense_hub.gateway.handover import GatewayEnd
from sendense_hub.gateway.limits import Limits

log = logging.getLogger(__name__)


class Gateway:
    """Serves SSH on accepted sockets."""

    def __init__(self, paths: HubPaths, limits: Limits, asked: authority.Authority) -> None:
        self._paths = paths
        self._limits = limits
        self._authority = asked
        self._logging_in = 0
        self.roster = Roster()
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
        if self._logging_in >= self._limits.logins:
            log.warning("refused a connection: %d are logging in already", self._logging_in)
            sock.close()
            return
        self._logging_in += 1
        try:
            conn = await asyncssh.run_server(sock, options=self._options)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            log.info("a connection ended before login: %s", error)
            return
        finally:
            self._logging_in -= 1
        await conn.wait_closed()

    def close(self) -> None:
        """Ends all connections."""
        for connection in self.roster:
            connection.end("the hub's gateway stops")

    def _connection(self) -> AgentConnection:
        return AgentConnection(self._authority, self._paths.agents_dir, self._limits, self.roster)


async def run(paths: HubPaths, limits: Limits, handover: GatewayEnd, stopping: asyncio.Event) -> None:
    """Serves what is handed over until `stopping` is set or the supervisor is gone."""
    tune_malloc()
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
            tasks.create_task(revocation.watch(asked, gateway.roster)),
            tasks.create_task(revocation.recheck(asked, gateway.roster, limits.recheck_s)),
        ]
        await stopping.wait()
        gateway.close()
        for task in [*background, *serving]:
            task.cancel()
